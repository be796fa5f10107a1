"""On a Ray cluster: the rows of the single machine, in partitions that a killed run leaves whole."""

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import forked
from anomalib_defend.commands import main
from anomalib_defend.decision import select
from anomalib_defend.decision.table import COLUMNS
from anomalib_defend.scoring import cluster, exported, partitions, remote
from anomalib_defend.scoring.cluster import score_on_ray
from anomalib_defend.scoring.inputs import Inputs
from anomalib_defend.scoring.models import Model
from anomalib_defend.scoring.partitions import Partitions
from anomalib_defend.scoring.run import score
from miniatures import write_images

parquet = pytest.importorskip("pyarrow.parquet")
Reader = Callable[..., list[dict[str, Any]]]


class OneProcess:
    """What is used of Ray, here and now."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.data = SimpleNamespace(ActorPoolStrategy=dict, from_items=self._dataset)
        self.scored, self.stop_after = 0, stop_after

    def get(self, value: Any) -> Any:
        return value

    put = get

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def _dataset(self, items: list[int], **_options: object) -> Any:
        def rows(actor: Any) -> Any:
            for item in items:
                self.scored += 1
                if self.scored > self.stop_after:
                    raise MemoryError
                yield actor({"item": item})

        return SimpleNamespace(
            map=lambda kind, fn_constructor_kwargs, **_: SimpleNamespace(
                iter_rows=lambda: rows(kind(**fn_constructor_kwargs))
            )
        )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> OneProcess:
    one = OneProcess()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as an actor sets it in its own process

    @contextmanager
    def here(_address: str | None) -> Any:
        yield one

    monkeypatch.setattr(cluster, "_ray", here)
    monkeypatch.setattr(cluster, "import_ray", lambda _address: None)
    return one


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Score, and read the partitions in the order of their names."""
    monkeypatch.setattr(partitions, "LEAST", 8)

    def run(model: Path, *paths: object, status: int = 3, out: object = tmp_path / "out", **options: Any) -> Any:
        assert score_on_ray(model, list(map(str, paths)), str(out), **options) == status
        return parquet.read_table(tmp_path / "out").to_pylist()

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifty files, two of which are no images."""
    folder = tmp_path / "images"
    write_images(folder, 48)
    (folder / "bad.png").write_text("no image")
    (folder / "empty.jpg").write_text("")
    return folder


def single(out: Path, model: Path, *paths: object, **options: Any) -> list[dict[str, Any]]:
    """What the single machine finds."""
    assert score(model, list(map(str, paths)), out, **options) == 3
    return parquet.read_table(out).to_pylist()


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """But for scores, which depend on the batch in the last digits."""
    assert len(found) == len(expected) == 50
    for row, other in zip(found, expected, strict=True):
        assert row == {
            **other,
            **{name: other[name] and pytest.approx(other[name], abs=1e-5) for name in ("score", "raw_score")},
        }
    assert len({row["raw_score"] for row in found}) > 10


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_partitions_hold_the_rows_of_the_single_machine(dn2, folder, read, ray, tmp_path, capsys, kind) -> None:
    hint = {"hint": "f32"} if kind == "export" else {}
    model = getattr(dn2, kind)
    capsys.readouterr()  # of the export
    expected = single(tmp_path / "one.parquet", model, folder, target_fpr=0.2, **hint)
    said = capsys.readouterr().out.splitlines()
    assert_same(read(model, folder, target_fpr=0.2, **hint), expected)
    table = parquet.read_table(tmp_path / "out")
    assert table.column_names == list(COLUMNS)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == ray.scored == 7
    again = capsys.readouterr().out.splitlines()
    assert again[1:-1] == said[1:-1]  # all but the seconds and the names
    assert "2 with an error" in again[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".parquet") == ["_run.json"]


def test_a_wrong_option_lists_nothing(dn2, folder, read, ray, tmp_path) -> None:
    with pytest.raises(ValueError, match="--hint int3 is no precision"):
        read(dn2.export, folder, hint="int3")
    assert not (tmp_path / "out").exists()
    assert ray.scored == 0


def test_a_killed_run_goes_on(dn2, folder, read, ray, tmp_path, capsys) -> None:
    ray.stop_after = 3
    with pytest.raises(MemoryError):
        read(dn2.checkpoint, folder)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(files) == 3
    (tmp_path / "out" / "_00000003.parquet.1f").write_text("torn")
    (folder / "another.png").write_text("added since, and not in the list")
    ray.stop_after = 1000
    found = read(dn2.checkpoint, folder)
    assert ray.scored == 4 + 4
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "Going on after 3 of 7 partitions" in capsys.readouterr().out
    (folder / "another.png").unlink()
    assert_same(found, single(tmp_path / "one.parquet", dn2.checkpoint, folder))
    assert read(dn2.checkpoint, folder) == found
    assert "is complete" in capsys.readouterr().out
    assert ray.scored == 8
    with pytest.raises(ValueError, match=r"was begun with other settings \(target_fpr.*give another --out"):
        read(dn2.checkpoint, folder, target_fpr=0.3)


def test_a_run_goes_on_from_another_folder(dn2, folder, read, ray, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = []

    class Bar(cluster.tqdm):
        def __init__(self, **options: Any) -> None:
            begun.append((options["initial"], options["total"]))
            super().__init__(**options)

    monkeypatch.setattr(cluster, "tqdm", Bar)
    ray.stop_after = 3
    with pytest.raises(MemoryError):
        read(dn2.checkpoint, "images")
    ray.stop_after = 1000
    monkeypatch.chdir(folder)
    found = read(dn2.checkpoint, folder)
    assert sum(row["error"] is not None for row in found) == 2
    assert [row["path"] for row in found][:1] == ["images/000.jpg"]
    assert begun == [(0, 50), (24, 50)]


def test_what_another_has_written_is_noticed(dn2, folder, read, ray, tmp_path) -> None:
    ray.stop_after = 3
    with pytest.raises(MemoryError):
        read(dn2.checkpoint, folder)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    parquet.write_table(parquet.read_table(parts[0]).slice(1), parts[0])
    ray.stop_after = 1000
    with pytest.raises(ValueError, match="has 49 rows, but 50 images were listed"):
        read(dn2.checkpoint, folder)


def test_a_run_that_dies_while_it_lists_lists_anew(dn2, folder, read, ray, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Partitions, "describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read(dn2.checkpoint, folder)
    assert len(read(dn2.checkpoint, folder)) == 50


def test_a_partition_that_is_there_is_not_scored_again(dn2, folder, tmp_path, ray) -> None:
    """As after a machine's loss, where what has come of it is not known."""
    run = Partitions(str(tmp_path / "out"))
    assert run.begin(map(str, sorted(folder.iterdir()))) == (1, 50)
    files = {dn2.checkpoint.name: dn2.checkpoint.read_bytes()}
    scorer = cluster.Scorer(lambda: files, dn2.checkpoint.name, None, None, run, "/nowhere")
    assert scorer({"item": 0}) == {"images": 50}
    first = (tmp_path / "out" / "00000000.parquet").stat()
    assert scorer({"item": 0}) == {"images": 50}
    assert (tmp_path / "out" / "00000000.parquet").stat() == first


def test_addresses_are_files_of_any_file_system(dn2, folder, read, ray, tmp_path, monkeypatch) -> None:
    (folder / "below").mkdir()
    (folder / "001.png").rename(folder / "below" / "ü 100% #1.png")
    (folder / ".hidden.png").write_text("")
    (folder / "telephone.heic").write_text("")
    found = read(dn2.checkpoint, f"file://{folder}", out=f"file://{tmp_path}/out")
    assert_same(found, single(tmp_path / "one.parquet", dn2.checkpoint, f"file://{folder}/"))
    by_path = single(tmp_path / "paths.parquet", dn2.checkpoint, folder)
    assert [row["path"] for row in found] == [f"file://{row['path']}" for row in by_path]
    assert [row["error"] for row in found] == [
        row["error"] and row["error"].replace(str(folder), f"file://{folder}") for row in by_path
    ]
    with pytest.raises(FileNotFoundError, match=r"file:///nowhere does not exist: give the address"):
        read(dn2.checkpoint, "file:///nowhere", out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"what://bucket cannot be opened"):
        read(dn2.checkpoint, "what://bucket/images", out=tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anomalib-defend\[parquet\]'"):
        Inputs(["gs://bucket/images"])


def test_addresses_with_options_and_folders_that_cannot_be_listed(images, tmp_path, monkeypatch) -> None:
    asked = []

    class Store:
        """A bucket that is a folder of this machine."""

        def get_file_info(self, what: Any) -> Any:
            if getattr(what, "base_dir", "").endswith("locked"):
                raise PermissionError(13, "Access Denied")
            return local.get_file_info(what)

    def file_system(root: str, options: str) -> Any:
        asked.append((root, options))
        return Store(), str(tmp_path)

    local, options = remote._file_system("file://", "")[0], "?region=eu-central-1&endpoint_override=localhost:9000"
    monkeypatch.setattr(remote, "_file_system", file_system)
    (tmp_path / "images" / "locked").mkdir()
    (tmp_path / "images" / "why?.png").touch()
    found = list(Inputs([f"s3://bucket/images/{options}"]))
    assert found[:1] == [f"s3://bucket/images/000.jpg{options}"]
    assert found[-2:] == [f"s3://bucket/images/{name}{options}" for name in ("why?.png", "locked")]
    assert set(asked) == {("s3://bucket", options)}
    assert remote.located(found[0])[1] == images[0]
    assert remote.located("s3://bucket/why?.png")[1] == f"{tmp_path}/why?.png"
    assert asked[-1] == ("s3://bucket", "")


def test_boxes_of_addresses(objects, images, tmp_path) -> None:
    for name, path in (("path", images[0]), ("address", f"file://{images[0]}")):
        assert score(objects.checkpoint, [path], tmp_path / f"{name}.parquet") == 0
    first, second = (parquet.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("path", "address"))
    assert first[0]["box"] == second[0]["box"] is not None


def test_models_of_one_core_do_not_all_sit_on_the_first(dn2, monkeypatch) -> None:
    """OpenVINO pins the threads of each process from the first core on."""
    monkeypatch.setattr("anomalib_defend.scoring.exported.usable_cores", lambda: 2)
    for cores, pinned in ((1, False), (2, True)):
        judge = Model(dn2.export, None, None, None, cores=cores).judge(None, Path())
        compiled = judge._scorer._requests.get().get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("ENABLE_CPU_PINNING") is pinned


def test_target_fdr_tells_the_bound(dn2, folder, read, ray, capsys, monkeypatch) -> None:
    ranks = np.array([9, 1, 2, 12, 15, 1, 18, 19])  # of the images of each batch
    monkeypatch.setattr(exported, "p_values", lambda raw, normal: ranks[: len(raw)] / (len(normal) + 1))
    found = read(dn2.export, folder, target_fdr=0.4)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--target-fdr 0.4 selects")]
    bound = float(line.rstrip(".").rpartition(" ")[2])
    values = [1.0 if row["p_value"] is None else row["p_value"] for row in found]
    assert [value < bound for value in values] == select(values, 0.4).tolist()
    assert 0 < sum(value < bound for value in values) < 50


def test_what_is_refused_says_the_way_out(dn2, folder, tmp_path, ray, monkeypatch, capsys) -> None:
    command = ["score", str(dn2.checkpoint), str(folder)]
    for more, told in (
        (["--out", "out.csv"], "give it the name of a folder"),
        (["--out", str(folder)], "is there, and not of this command"),
        (["--out", "out", "--maps", "maps"], "without --engine"),
        (["--out", "out", "--first-view", "a.ckpt"], "leave it out"),
        (["--out", "out", "--hint", "f32"], "is of OpenVINO"),
    ):
        assert main([*command, "--engine", "ray", *more]) == 1
        assert told in capsys.readouterr().err
    assert main([*command, "--out", "out.csv", "--address", "auto"]) == 1
    assert "--address is of --engine ray" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert main([*command, "--out", str(tmp_path / "out"), "--engine", "ray"]) == 1
    assert "pip install 'anomalib-defend[scale]'" in capsys.readouterr().err


def score_in_process(model: Path, out: Path) -> None:
    """For a process of its own, since Ray reads its environment as it is imported; with relative paths."""
    real = cluster._ray

    @contextmanager
    def watched(address: str | None) -> Any:
        with real(address) as ray:
            assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
            yield ray

    cluster._ray = watched
    partitions.LEAST = 8
    assert score_on_ray(model, ["images"], str(out), hint="f32") == 3


@pytest.mark.slow
def test_one_node(dn2, folder, tmp_path, monkeypatch) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    monkeypatch.chdir(folder.parent)
    forked.run(score_in_process, dn2.export, tmp_path / "out")
    found = parquet.read_table(tmp_path / "out").to_pylist()
    assert_same(found, single(tmp_path / "one.parquet", dn2.export, "images", hint="f32"))
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 7
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["images"]["errors"] == 2
