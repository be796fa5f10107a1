"""``anomalib-defend score --engine ray``: the same rows, from as many machines as a Ray cluster has.

Ray Data shares the partitions out, starts anew what a lost machine was about, and takes new machines in. What is ours
is one actor for each core, which scores a partition as the single machine does.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from anomalib_defend.decision.conformal import check_share
from anomalib_defend.files.names import to_text
from anomalib_defend.post_processing.description import Run

from .finish import FORMATS
from .inputs import Inputs
from .models import MEASURED, Model, digest, files_of
from .partitions import Partitions
from .remote import is_address
from .run import SOME_FAILED, paths_of
from .tally import Tally
from .validity import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

READERS = 8
"""Threads of an actor, that is of a core, which wait for images: a network answers later than a disk."""


def score_on_ray(
    model: Path,
    paths: Sequence[str],
    out: str,
    *,
    target_fpr: float | None = None,
    target_fdr: float | None = None,
    hint: str | None = None,
    address: str | None = None,
) -> int:
    """Score images on a Ray cluster, and write a folder of Parquet files; a run that was killed goes on.

    Args:
        model: As for `score`; its files are sent to the machines.
        paths: As for `score`. What they name has to have the same name on all machines.
        out: The folder, as a path that all machines have, or an address (``s3://...``).
        target_fpr: As for `score`.
        target_fdr: Say up to which p-value images are selected; there is no column.
        hint: As for `score`.
        address: Of a running cluster; without it, one is started on this machine alone, which nothing else reaches.

    Returns:
        The exit status: 0, or 3 if there are images with an error.

    Raises:
        FileExistsError: If something else is in the folder.
        FileNotFoundError: If there is no such model, or no such image.
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If an argument does not fit, a run that was begun was another, or something else has written there.
    """
    if out.endswith(FORMATS):
        msg = f"--out {to_text(out)}: --engine ray writes a folder of Parquet files, so give it the name of a folder."
        raise ValueError(msg)
    import_ray(address)
    shares = {"target_fpr": target_fpr, "target_fdr": target_fdr}
    check_share(**{name: value for name, value in shares.items() if value is not None})
    opened = Model(model, None, target_fpr, hint, cores=1)
    if opened.calibration is None and target_fdr is not None:
        msg = f"--target-fdr needs p-values. {opened.missing}"
        raise ValueError(msg)
    settings = {"model": digest(opened.path), "paths": paths_of(paths), **shares, "hint": hint}
    folder, started = Partitions(out), Run()
    content = folder.begun(settings)
    if content is None:
        inputs = Inputs(paths)
        opened.judge(None, Path())  # a model that cannot score says so before all is listed
        partitions, images = folder.begin(inputs)
        if not images:
            raise inputs.no_image()
        content = {
            "settings": settings,
            "partitions": partitions,
            "listed": images,
            "formats": inputs.other_formats,
            "working_directory": os.getcwd(),  # noqa: PTH109 - relative paths are from here, wherever it goes on
        }
        folder.describe(content)
    if "images" in content:
        print(f"{to_text(out)} is complete: remove it to score the images again.")
        return SOME_FAILED if content["images"]["errors"] else 0
    if opened.missing:
        print(f"Without p-values: {opened.missing}", flush=True)
    _run(folder, opened, content, address)
    # on this machine, of the first images that it can read
    first = [name if is_address(name) else f"{Path(content['working_directory'], name)}" for name in folder.images(0)]
    tally = Tally(opened.calibration, coarse=opened.coarse, rounding=opened.rounding(first[:MEASURED]))
    folder.count(content["partitions"], tally)
    if tally.images != content["listed"]:
        msg = (
            f"{to_text(out)} has {tally.images} rows, but {content['listed']} images were listed: something else has "
            "written there. Remove it, and score anew."
        )
        raise ValueError(msg)
    folder.describe({**started.content(), **opened.content(), **content, "images": tally.content()})
    folder.tidy()
    for line in _told(tally, opened, content, started):
        print(line)
    print(f"Written: {to_text(out)}")
    return SOME_FAILED if tally.errors else 0


def _told(tally: Tally, model: Model, content: dict[str, Any], started: Run) -> Iterator[str]:
    yield from tally.told(started.content()["seconds"], content["formats"])
    if model.calibration is None:
        return
    target_fdr = content["settings"]["target_fdr"]
    if target_fdr is not None:
        rank = tally.selects(target_fdr)
        bound = (rank + 0.5) / (model.calibration.count + 1)  # between two p-values: digits of a file are cut off
        yield f"--target-fdr {target_fdr:g} selects the images with p_value < {bound:.6g}."
    yield from filter(
        None, [answer(lambda level: (tally.at_most(level), tally.p_values), model.calibration.count, model.path)]
    )


def _run(folder: Partitions, model: Model, content: dict[str, Any], address: str | None) -> None:
    """Score the partitions that are missing."""
    missing = folder.missing(content["partitions"])
    if not missing:
        return
    if len(missing) < content["partitions"]:
        done = content["partitions"] - len(missing)
        print(f"Going on after {done} of {content['partitions']} partitions of {to_text(folder.out)}.", flush=True)
    settings = content["settings"]
    with _ray(address) as ray:
        arguments = {
            "files": partial(ray.get, ray.put({path.name: path.read_bytes() for path in files_of(model.path)})),
            "model": model.path.name,
            "target_fpr": settings["target_fpr"],
            "hint": settings["hint"],
            "folder": folder,
            "working_directory": content["working_directory"],
        }
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=min(cores, len(missing)), max_size=None)
        rows = ray.data.from_items(missing, override_num_blocks=min(len(missing), 10_000)).map(
            Scorer, fn_constructor_kwargs=arguments, num_cpus=1, compute=pool
        )
        done = content["listed"] - folder.count_images(missing, content["partitions"], content["listed"])
        options = {"total": content["listed"], "initial": done, "smoothing": 0.05, "disable": None}
        with tqdm(desc="Scoring", unit=" images", **options) as bar:
            for row in rows.iter_rows():
                bar.update(row["images"])


class Scorer:
    """Scores partitions, in a process of its own on any of the machines.

    Args:
        files: Gives what the model's files hold, by name.
        model: Name of the one that is opened.
        target_fpr: As for `Model`.
        hint: As for `Model`.
        folder: Of the run.
        working_directory: Of the command that has listed the images.
    """

    def __init__(
        self,
        files: Callable[[], dict[str, bytes]],
        model: str,
        target_fpr: float | None,
        hint: str | None,
        folder: Partitions,
        working_directory: str,
    ) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # an actor is a core
        import torch  # noqa: PLC0415 - seconds

        torch.set_num_threads(1)
        with suppress(OSError):  # a machine that has other folders: absolute paths and addresses do not need this one
            os.chdir(working_directory)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            for name, content in files().items():
                (Path(temporary) / name).write_bytes(content)
            self._judge = Model(Path(temporary) / model, None, target_fpr, hint, cores=1).judge(None, Path())
        self._folder = folder

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        """Score a partition; one that was scored already, and whose note was lost with a machine, is the same again."""
        from .pipeline import score_rows  # noqa: PLC0415 - seconds

        number = row["item"]
        paths = self._folder.images(number)
        if not self._folder.has(number):
            entries = [entry for batch in score_rows(paths, self._judge, READERS) for entry in batch]
            self._folder.write(number, entries)
        return {"images": len(paths)}


def import_ray(address: str | None) -> None:
    """Import Ray Data, which reads its environment as it is imported.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to its makers otherwise
    # of its C++ part, which calls every actor's arguments an error; Python's errors are raised here
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # all its ports are on the loopback address
    try:
        import ray.data  # noqa: F401, PLC0415 - optional extra
    except ModuleNotFoundError as error:
        msg = "--engine ray needs Ray Data: pip install 'anomalib-defend[scale]'."
        raise ModuleNotFoundError(msg, name=error.name) from error


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one on this machine alone."""
    import ray  # noqa: PLC0415 - optional extra

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = address
    ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()
