"""The folder of a run on many machines: one list of images and one Parquet file for each partition.

``_run.json`` says what was run. ``_images/00000000`` and so on are lists of paths, a zero byte after each, written
before anything is scored; ``00000000.parquet`` has the rows of the list of that name, in its order. A partition is
there as a whole or not at all, and whoever writes it again writes the same: nothing is lost, nothing is there twice.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from anomalib_defend.decision.table import COLUMNS, LABELS, cells
from anomalib_defend.files.names import to_text

from .finish import write_parquet
from .journal import refuse_other
from .remote import located

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .journal import Entry
    from .tally import Tally

LEAST, MOST = 64, 10_000
"""Images of a partition: a thousandth of those before it, so that many machines end together."""
_RUN = "_run.json"
_SUFFIX = ".parquet"


def _size(before: int) -> int:
    """Images of a partition with ``before`` ones before it; the last one may have fewer."""
    return min(MOST, max(LEAST, before // 1000))


class Partitions:
    """The folder of a run, on any file system.

    Args:
        out: Its path or address.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._system, self._root = located(out)

    def begun(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """What ``_run.json`` says; None if nothing was begun, or the lists were not finished.

        Raises:
            FileExistsError: If something else is there.
            ValueError: If a run with other settings was begun.
        """
        from pyarrow.fs import FileType  # noqa: PLC0415 - optional extra

        where = to_text(self.out)
        path = f"{self._root}/{_RUN}"
        if self._system.get_file_info(path).type == FileType.File:
            with self._system.open_input_file(path) as file:
                content = json.loads(file.read())
            refuse_other(content["settings"], settings, f"{where} was begun", "remove it to begin anew")
            return content
        if any(not name.startswith(("_", ".")) for name in self._names()):
            msg = f"{where} is there, and not of this command: remove it, or give another --out."
            raise FileExistsError(msg)
        return None

    def begin(self, paths: Iterable[str]) -> tuple[int, int]:
        """Write the lists, and return how many partitions and images there are."""
        remaining, partitions, images = iter(paths), 0, 0
        self._system.create_dir(f"{self._root}/_images", recursive=True)
        while group := list(islice(remaining, _size(images))):
            with self._whole(self._list(partitions)) as file:
                file.write(b"".join(os.fsencode(path) + b"\0" for path in group))
            partitions, images = partitions + 1, images + len(group)
        return partitions, images

    def describe(self, content: dict[str, Any]) -> None:
        """Write ``_run.json``."""
        with self._whole(f"{self._root}/{_RUN}") as file:
            file.write(f"{json.dumps(content, indent=1)}\n".encode())

    def missing(self, partitions: int) -> list[int]:
        """The numbers of the partitions that are not scored yet."""
        names = self._names()
        return [number for number in range(partitions) if f"{number:08d}{_SUFFIX}" not in names]

    def count_images(self, missing: Sequence[int], partitions: int, images: int) -> int:
        """How many images some partitions have.

        Args:
            missing: Their numbers.
            partitions: How many there are.
            images: How many images all have.
        """
        starts = [0]
        for _ in range(partitions - 1):
            starts.append(starts[-1] + _size(starts[-1]))
        ends = [*starts[1:], images]
        return sum(ends[number] - starts[number] for number in missing)

    def has(self, number: int) -> bool:
        """Whether a partition is scored."""
        from pyarrow.fs import FileType  # noqa: PLC0415 - optional extra

        return self._system.get_file_info(self._partition(number)).type == FileType.File

    def images(self, number: int) -> list[str]:
        """The paths of a partition's images."""
        with self._system.open_input_file(self._list(number)) as file:
            return [os.fsdecode(path) for path in file.read().split(b"\0")[:-1]]

    def write(self, number: int, entries: Sequence[Entry]) -> None:
        """Write a partition."""
        rows = (dict(zip(COLUMNS, cells(entry.row), strict=True)) for entry in entries)
        with self._whole(self._partition(number)) as file:
            write_parquet(file, COLUMNS, rows)

    def tidy(self) -> None:
        """Remove the lists, and what killed processes have left."""
        self._system.delete_dir(f"{self._root}/_images")
        for name in self._names() - {_RUN}:
            if name.startswith("_"):
                self._system.delete_file(f"{self._root}/{name}")

    def count(self, partitions: int, tally: Tally) -> None:
        """Read all partitions back, and count their rows."""
        from pyarrow import compute, dataset  # noqa: PLC0415 - optional extra

        files = [self._partition(number) for number in range(partitions)]
        if not files:
            return
        rows = dataset.dataset(files, filesystem=self._system, format="parquet")
        for batch in rows.to_batches(columns=["label", "p_value", "raw_score", "error"]):
            label, p_value, raw_score, error = batch.columns
            novel = compute.sum(compute.equal(label, LABELS[True])).as_py() or 0
            p_values, raw_scores = (
                values.drop_null().to_numpy(zero_copy_only=False)
                for values in (p_value, raw_score.filter(label.is_valid()))
            )
            tally.add_many(len(batch), len(batch) - error.null_count, novel, p_values, raw_scores)

    def _names(self) -> set[str]:
        from pyarrow.fs import FileSelector  # noqa: PLC0415 - optional extra

        return {info.base_name for info in self._system.get_file_info(FileSelector(self._root, allow_not_found=True))}

    def _list(self, number: int) -> str:
        return f"{self._root}/_images/{number:08d}"

    def _partition(self, number: int) -> str:
        return f"{self._root}/{number:08d}{_SUFFIX}"

    @contextmanager
    def _whole(self, path: str) -> Iterator[Any]:
        """A file that is there once it is complete, whoever else writes it at the same time."""
        folder, _, name = path.rpartition("/")
        draft = f"{folder}/_{name}.{uuid.uuid4().hex}"  # with an underscore readers of the folder pass over it
        with self._system.open_output_stream(draft) as file:
            yield file
        self._system.move(draft, path)
