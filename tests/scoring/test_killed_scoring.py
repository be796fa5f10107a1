"""Killed at any moment a run goes on: no image is lost, none is there twice; and only the same run goes on."""

import csv
import errno
import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st

import forked
from anomalib_defend.decision import Calibration, Level
from anomalib_defend.decision.table import COLUMNS, Row, read_table
from anomalib_defend.scoring import journal, run
from anomalib_defend.scoring.finish import write_table
from anomalib_defend.scoring.images import UnusableImageError
from anomalib_defend.scoring.journal import Entry, Journal
from anomalib_defend.scoring.judges import Judge
from anomalib_defend.scoring.pipeline import score_rows
from anomalib_defend.scoring.sample import MOST, Sample
from anomalib_defend.scoring.tally import Tally
from miniatures import write_images

SETTINGS = {"model": "a"}
RNG = np.random.default_rng(0)


class Slow:
    """Takes the file's name for its score, in a random time."""

    calibration, batch_size, parallel = None, 3, 4

    def prepare(self, path):
        time.sleep(RNG.random() / 1000)
        if path.endswith("x"):
            raise UnusableImageError("no image")
        return torch.tensor(float(path))

    def score(self, paths, images):
        time.sleep(RNG.random() / 100)
        return ImageBatch(
            image=torch.zeros(len(paths), 3, 1, 1), image_path=list(paths), pred_score=torch.stack(list(images))
        )


def test_rows_come_in_order_and_no_more_images_are_read_than_a_few_batches() -> None:
    taken = []

    def paths():
        for index in range(300):
            taken.append(index)
            yield f"{index}x" if index % 7 == 0 else f"{index}"

    number = 0
    for entries in score_rows(paths(), Judge(Slow())):
        for entry in entries:
            assert entry.row.path.rstrip("x") == str(number)
            assert entry.row.score == (None if number % 7 == 0 else number)
            number += 1
        assert len(taken) - number <= 3 * (4 * Slow.parallel)
    assert number == 300


def test_an_error_of_the_model_ends_the_run_and_its_threads() -> None:
    class Broken(Slow):
        def score(self, paths, images):
            raise FloatingPointError("weights")

    before = threading.active_count()
    with pytest.raises(FloatingPointError, match="weights"):
        list(score_rows(map(str, range(100)), Judge(Broken())))
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_rows(tmp_path) -> None:
    calibration = Calibration(0.05, Level(1.0, 0.5, 0.5, tuple(np.linspace(0, 1, 99).tolist())))

    def peak(count: int) -> int:
        """Of writing so many rows, of going on after them, and of reading them."""
        tally, sample = Tally(calibration), Sample()
        tracemalloc.start()
        with Journal(tmp_path / f"{count}.csv", SETTINGS) as begun:
            assert not list(begun.resume(iter(())))
            for batch in range(count // 10):
                begun.append(Entry(Row(f"{batch * 10 + index:09d}", 0.5, p_value=0.5)) for index in range(10))
        with Journal(tmp_path / f"{count}.csv", SETTINGS) as begun:
            for entry in begun.resume(f"{index:09d}" for index in range(count)):
                tally.add(entry)
                sample.add(entry)
            assert sum(1 for _ in begun.read()) == tally.images == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(3 * MOST) < 1.2 * peak(MOST)


def begin(out: Path, paths: list[str]) -> list[Entry]:
    with Journal(out, SETTINGS) as begun:
        found = list(begun.resume(iter(paths)))
        begun.append(Entry(Row(path, score=float(index))) for index, path in enumerate(paths[len(found) :]))
    return found


@given(cut=st.integers(0, 400), tail=st.sampled_from([b"", b"\0\0\0", b"a,b\r\n", b'"open', b"\r\n"]))
def test_a_torn_file_is_repaired(tmp_path_factory, cut, tail) -> None:
    out = tmp_path_factory.mktemp("torn") / "out.csv"
    paths = ["a", "b,c", 'd"e', "St\udcfcck", "two\nlines", "é", "=1", "./=1", "x" * 50]
    assert not begin(out, paths)
    file = out.with_name("out.csv.part")
    whole = file.read_bytes()
    file.write_bytes(whole[:cut] + tail)
    lines = max(0, whole[:cut].count(b"\r\n") - 1)
    assert lines <= len(begin(out, paths)) <= lines + 1  # the tail may end a line
    rows = read_table(file)
    assert len(rows) == len(paths)
    assert [entry.row.path.removeprefix("./") for entry in begin(out, paths)] == [p.removeprefix("./") for p in paths]


def test_only_the_same_run_goes_on(tmp_path) -> None:
    out = tmp_path / "out.csv"
    begin(out, ["a", "b"])
    with pytest.raises(ValueError, match=r"begun with other settings \(model: 'a', now 'b'\).* give another --out"):
        Journal(out, {"model": "b"})
    with Journal(out, SETTINGS) as begun:
        with pytest.raises(BlockingIOError, match="written by another process"):
            Journal(out, SETTINGS)
        with pytest.raises(ValueError, match="begun with other images: line 3 is of b, but now c comes next"):
            list(begun.resume(iter(["a", "c"])))
        with pytest.raises(ValueError, match="line 3 is of b, but now no more image follows"):
            list(begun.resume(iter(["a"])))
    assert [entry.row.path for entry in begin(out, ["a", "b", "c"])] == ["a", "b"]  # nothing was lost by refusing
    (tmp_path / "out.csv.part.json").unlink()
    with pytest.raises(ValueError, match="not what it was begun with"):
        Journal(out, SETTINGS)


def test_a_list_of_relative_paths_goes_on_in_its_folder_alone(dn2, images, tmp_path, monkeypatch) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("images/000.jpg\nimages/001.png\n")
    arguments = (dn2.checkpoint, [str(listed)], tmp_path / "out.csv")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.score(*arguments)
    monkeypatch.chdir("images")
    with pytest.raises(ValueError, match=r"with other settings \(working_directory: .*, now .*images'\)"):
        run.score(*arguments)
    monkeypatch.chdir(tmp_path)
    assert run.score(*arguments) == 0


def test_another_table_is_never_replaced(dn2, images, rows, tmp_path, capsys) -> None:
    found = rows(dn2.checkpoint, *images)
    capsys.readouterr()
    before = (tmp_path / "out.csv").stat()
    assert rows(dn2.checkpoint, *images) == found
    assert (tmp_path / "out.csv").stat() == before
    assert "out.csv is complete: remove it" in capsys.readouterr().out
    for change in ({"target_fpr": 0.3}, {"target_fdr": 0.1}, {"maps": tmp_path / "maps"}):
        with pytest.raises(ValueError, match=r"out.csv was made with other settings \((target_f.r|maps)"):
            rows(dn2.checkpoint, *images, **change)
    with pytest.raises(ValueError, match="with other settings"):
        rows(dn2.checkpoint, *images[:3])
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.csv is there, and not of this command"):
        rows(dn2.checkpoint, *images, out="mine.csv")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"other\.json is there"):
        rows(dn2.checkpoint, *images, out="other.csv")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "mine.csv", "other.json", "out.csv", "out.json",
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["answer", "write_json", "write_table", "remove"])
def test_a_run_that_dies_while_it_finishes_is_finished_later(
    dn2, images, rows, tmp_path, monkeypatch, step, capsys
) -> None:
    def die(*_arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(*((Journal, step) if step == "remove" else (run, step)), die)
        with pytest.raises(MemoryError):
            rows(dn2.checkpoint, *images, target_fdr=0.2)
    rows(dn2.checkpoint, *images, target_fdr=0.2)
    assert ("is complete" if step == "remove" else "Is the threshold still valid?") in capsys.readouterr().out
    rows(dn2.checkpoint, *images, target_fdr=0.2, out="once.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "once.csv").read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_no_open_file_is_renamed(tmp_path, monkeypatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(journal, "WINDOWS", True)
    begin(tmp_path / "out.csv", ["a"])
    rename = Path.replace
    with Journal(tmp_path / "out.csv", SETTINGS) as opened:

        def replace(path, target):
            if path == opened.path and not opened._file.closed:
                raise PermissionError(13, "used by another process")
            rename(path, target)

        monkeypatch.setattr(Path, "replace", replace)
        write_table(opened, tmp_path / "out.csv", None)
        opened.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_file_system_without_locks_has_rows_all_the_same(tmp_path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    begin(tmp_path / "out.csv", ["a"])
    assert [entry.row.path for entry in begin(tmp_path / "out.csv", ["a", "b"])] == ["a"]


def score_in_process(checkpoint: str, folder: str, out: str) -> None:
    """For a process that is killed: batches of two images, and a moment between them."""
    from anomalib_defend.scoring import checkpoint as module

    module.CheckpointScorer.batch_size = 2
    score = module.CheckpointScorer.score

    def slowly(self, paths, images):
        time.sleep(0.02)
        return score(self, paths, images)

    module.CheckpointScorer.score = slowly
    run.score(Path(checkpoint), [folder], Path(out), target_fdr=0.2)


def written(part: Path) -> bytes:
    """What is there; nothing once the process has finished the table, which may be at any moment."""
    try:
        return part.read_bytes()
    except FileNotFoundError:
        return b""


def test_killed_again_and_again(dn2, tmp_path) -> None:
    paths = write_images(tmp_path / "images", 60)
    arguments = (str(dn2.checkpoint), str(tmp_path / "images"))
    out, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    kills, rng = 0, np.random.default_rng(1)
    while not out.exists():
        before = written(part).count(b"\n")
        process = forked.start(score_in_process, *arguments, str(out))
        wanted = before + rng.integers(3, 20)
        while process.is_alive() and written(part).count(b"\n") < wanted:
            time.sleep(0.002)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            part.write_bytes(written(part)[: -rng.integers(1, 30)])
        assert forked.wait(process) in {0, -signal.SIGKILL}
        assert kills < 30
    assert kills > 2
    found = read_table(out)
    assert [row.path for row in found] == paths
    run.score(dn2.checkpoint, [str(tmp_path / "images")], tmp_path / "once.csv", target_fdr=0.2)
    with out.open(newline="") as file, (tmp_path / "once.csv").open(newline="") as once:
        tables = [list(csv.DictReader(each)) for each in (file, once)]
    assert list(tables[0][0]) == [*COLUMNS, "selected"]
    for cells, other in zip(*tables, strict=True):
        numbers = {name: pytest.approx(float(other[name]), abs=1e-5) for name in ("score", "raw_score")}
        assert {**cells, **{name: float(cells[name]) for name in numbers}} == {**other, **numbers}
