"""Running a comparison: what is missing and nothing else, whatever fails or is killed in between."""

import io
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fake_cell
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from anomalib_defend.benchmark import driver
from anomalib_defend.benchmark.budget import Budget
from anomalib_defend.benchmark.build import Size, check, complete
from anomalib_defend.benchmark.expand import CONFIGS, load
from anomalib_defend.benchmark.plan import Cell, ComparisonError, save
from anomalib_defend.commands import main
from anomalib_defend.nn.vit import create_vit


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run models, given by name and arguments, on two categories with fake cells; what ran is in ``run.cells()``."""
    monkeypatch.setattr(driver, "RUN", fake_cell.run)
    log = tmp_path / "log"

    def comparison(models, categories):
        entries = {name: {"class_path": "M", "init_args": {"runs": str(log), **args}} for name, args in models.items()}
        data = {"VOC": {"class_path": "D", "categories": list(categories)}}
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump({"seeds": [0], "models": entries, "data": data}, sort_keys=False))
        return load(file)

    def start(models, categories=("dog", "cat"), **options):
        log.write_text("")
        planned = comparison(models, categories)
        sizes = {cell.key: Size(10 * (1 + index), 4, 1) for index, cell in enumerate(planned.cells)}
        start.lines = []  # type: ignore[attr-defined]
        return driver.run_missing(planned, sizes, start.folder, echo=start.lines.append, **options)  # type: ignore[attr-defined]

    def plan(models, categories=("dog", "cat"), **options):
        lines = []
        driver.show_plan(comparison(models, categories), start.folder, echo=lines.append, **options)  # type: ignore[attr-defined]
        return lines

    start.plan = plan  # type: ignore[attr-defined]
    start.cells = lambda: sorted(log.read_text().split())  # type: ignore[attr-defined]
    start.folder = tmp_path / "results"  # type: ignore[attr-defined]
    return start


def names(*cells):
    return sorted(f"{model}__VOC__{category}__seed0" for model, category in cells)


def folders(run):
    """Names of the folders without the hash of the full name."""
    return [re.sub(r"-[0-9a-f]{6}$", "", name) for name in run.cells()]


def test_finished_cells_are_never_run_again(run):
    assert run({"A": {}}) == {}
    assert folders(run) == names(("A", "dog"), ("A", "cat"))
    assert run({"A": {}, "B": {}}) == {}
    assert folders(run) == names(("B", "dog"), ("B", "cat"))
    assert run({"A": {}, "B": {}}) == {}
    assert run.cells() == []


def test_a_changed_cell_is_run_again_and_no_other(run):
    run({"A": {}, "B": {"k": 1}})
    run({"A": {}, "B": {"k": 2}})
    assert folders(run) == names(("B", "dog"), ("B", "cat"))


def test_another_version_runs_all_again(run, monkeypatch):
    run({"A": {}}, ["dog"])
    monkeypatch.setattr("anomalib_defend.benchmark.plan.__version__", "99")
    run({"A": {}}, ["dog"])
    assert folders(run) == names(("A", "dog"))


def test_a_killed_cell_starts_afresh(run):
    """What a kill leaves: files of every kind, but no result."""
    run({"A": {}})
    [folder] = [path for path in run.folder.iterdir() if "dog" in path.name]
    (folder / "result.json").unlink()
    run({"A": {}})
    assert folders(run) == names(("A", "dog"))
    (folder / "result.json").write_text("{")
    assert run({"A": {}}) == {}
    assert folders(run) == names(("A", "dog"))


def test_a_failing_cell_is_told_and_the_others_run(run):
    failed = run({"Broken": {"error": "ValueError: no such category"}, "A": {}})
    assert failed == dict.fromkeys(
        ("Broken | VOC | dog | seed 0", "Broken | VOC | cat | seed 0"), "ValueError: no such category"
    )
    assert folders(run) == names(("A", "dog"), ("A", "cat"), ("Broken", "dog"), ("Broken", "cat"))
    assert run({"Broken": {}, "A": {}}) == {}  # mended: it is tried again, and nothing else
    assert folders(run) == names(("Broken", "dog"), ("Broken", "cat"))


def test_a_cell_that_is_killed_is_told(run):
    """As the kernel does where memory is short."""
    assert run({"Big": {"signal": 9}, "A": {}}, ["dog"]) == {
        "Big | VOC | dog | seed 0": "the process was ended by signal 9"
    }
    assert folders(run) == names(("A", "dog"), ("Big", "dog"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"rows": 0}, "0 rows"),
        ({"rows": 2}, "2 rows"),
        ({"row": {"image_AUROC": "nan"}}, "image_AUROC is None"),
        ({"row": {"image_AUROC": 1.5}}, "image_AUROC is 1.5"),
        ({"row": {}}, "lacks image_AUROC"),
        ({"row": {"image_AUROC": 0.5, "seed": 7}}, "of seed 7"),
    ],
)
def test_a_csv_that_is_not_right_is_a_failure(run, args, message):
    [error] = run({"A": args}, ["dog"]).values()
    assert message in error


def test_cells_side_by_side_and_each_once(run):
    assert run({name: {} for name in "ABC"}, jobs=3) == {}
    assert folders(run) == names(*((name, category) for name in "ABC" for category in ("dog", "cat")))
    assert sum("image AUROC 0.7500" in line for line in run.lines) == 6


@pytest.fixture
def measured(run):
    """One finished cell, of which 100 s were the start, 2 training and 1 the test."""
    run({"A": {}}, ["dog"])
    [result] = run.folder.glob("*/result.json")
    result.write_text(json.dumps({**json.loads(result.read_text()), "seconds": 103}))


def test_the_time_is_told_once_something_of_each_model_is_measured(run):
    """While other cells go on: no core waits for the last of the first ones."""
    assert run({"A": {}, "B": {"k": 1}}, ["dog", "cat", "cow"], jobs=2) == {}
    [told] = [number for number, line in enumerate(run.lines) if line.startswith("Time budget of")]
    before = [line for line in run.lines[:told] if line.startswith("[")]
    assert {line.partition("] ")[2][0] for line in before} == {"A", "B"}
    assert run.lines[told].startswith(f"Time budget of {6 - len(before)} cells")
    assert not [line for line in before[:-1] if " left" in line]


def test_the_budget_rests_on_finished_cells(run, measured):
    run({"A": {}}, jobs=5)  # cat has twice dog's training images: 100 + 2 * 2 + 1 s
    assert "Together 0:00:21 with --jobs 5." in run.lines


def test_the_plan_shows_what_is_missing_and_how_long_cells_of_the_same_data_took(run, measured):
    lines = run.plan({"A": {}, "B": {"k": 1}}, ["dog", "cat", "cow"], jobs=2)
    assert lines[0] == "small: 6 cells, 1 finished."
    assert set(map(str.strip, lines[1:6])) == {
        "A | VOC | cat | seed 0", "A | VOC | cow | seed 0",
        *(f"B | VOC | {name} | seed 0" for name in ("dog", "cat", "cow")),
    }  # fmt: skip
    assert "  A | VOC: 2 cell(s): 0:03:26, from 1 finished cell(s) of the same data" in lines
    assert "  B | VOC: 3 cell(s): not measured yet" in lines
    assert lines[-1] == "Together 0:01:43 with --jobs 2, and 3 cell(s) not measured yet."
    assert run.plan({"A": {}}, ["dog"]) == ["small: 1 cells, 1 finished."]


def test_a_dry_run_needs_no_gpu_no_weights_and_no_data(config, tmp_path, capsys):
    file = config(accelerator="cuda", variables__root="/nowhere", models__DN2__init_args__weights="/nowhere/a.pth")
    assert main(["benchmark", "run", str(file), "--dry-run", "--results", str(tmp_path / "results")]) == 0
    assert "  Defend | VOC | dog | seed 0" in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "results").exists()


def test_no_line_wraps_on_a_terminal(run):
    """A long error ends in an ellipsis; it is told in full after the bar."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    cell = Cell("A", "VOC", "dog", 0, {}, {}, {}, "cpu")
    display = driver._Display(Budget([]), {}, [cell], [], jobs=1, echo=print, console=console)
    with display:
        display.end(cell, "ValueError: " + "long " * 30)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", screen.getvalue())]
    assert max(map(len, lines)) <= 60
    [told] = [line.rstrip() for line in lines if "ValueError" in line]
    assert told.endswith("…")
    assert any("1/1" in line for line in lines)


# ------------------------------------------------------------------------------------------ with real models and data


@pytest.fixture
def config(tmp_path, voc):
    """Write a comparison of DN2 and others, with a tiny encoder on the miniature of VOC."""
    vit = create_vit("vit_digits_patch8_96", (96, 96))
    save_file(vit.state_dict(), tmp_path / "tiny.safetensors")

    def write(**changes):
        tiny = {"backbone": "vit_digits_patch8_96", "image_size": 32, "weights": str(tmp_path / "tiny.safetensors")}
        content = {
            "variables": {"root": str(voc)},
            "seeds": [0],
            "models": {
                "DN2": {"class_path": "DN2", "init_args": tiny},
                "Defend": {"class_path": "Defend", "init_args": {**tiny, "dense_epochs": 0, "distill_epochs": 1}},
            },
            "data": {
                "VOC": {
                    "class_path": "SemanticVOC",
                    "init_args": {"root": "${variables.root}", "num_workers": 0, "train_batch_size": 4},
                    "categories": ["dog"],
                }
            },
        }
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models__DN2__class_path": "DN3"}, "class_path 'DN3'. Did you mean 'DN2'.* Available are .*, DN2, .*Padim"),
        ({"models__Defend__init_args__bacbone": 1}, "models.Defend: .*'bacbone'.* Did you mean 'backbone'"),
        ({"models__Defend__init_args__mask_ratio": 2}, "models.Defend: mask_ratio=2"),
        ({"models__DN2__init_args__weights": "/nowhere/a.pth"}, "models.DN2: .*/nowhere/a.pth"),
        ({"data__VOC__class_path": "VOC3"}, "data.VOC: unknown class_path 'VOC3'.* SemanticVOC"),
        ({"data__VOC__categories": []}, "data.VOC.categories is empty"),
        ({"data__VOC__init_args__root": "${variables.rot}"}, "'variables.rot' not found .variables are root; --set"),
        ({"data__VOC__init_args__max": 1}, "data.VOC: .*'max'"),
        ({"data__VOC__categories": ["dogg"]}, "data.VOC: .*'dogg'.* Did you mean 'dog'"),
        ({"variables__root": "/nowhere"}, "data.VOC: .*/nowhere"),
        ({"trainer": {"max_epoch": 1}}, "'max_epoch'.* Did you mean 'max_epochs'"),
        ({"model": {}}, "unknown key model;.* Did you mean 'models'"),
        ({"seeds": "0"}, "tiny.yaml: seeds must be a list"),
        ({"seeds": 0}, "tiny.yaml: seeds must be a list"),
        ({"seeds": []}, "tiny.yaml: seeds must be a list"),
        ({"models": {}}, "tiny.yaml: models is empty"),
        ({"reference": "Padim"}, "unknown Padim"),
        ({"accelerator": "tpu"}, "cpu or cuda"),
    ],
)
def test_bad_input_is_refused_before_the_first_cell(config, tmp_path, capsys, changes, message):
    file = config(**changes)
    assert main(["benchmark", "run", str(file), "--results", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert re.search(message, error)
    assert not (tmp_path / "results").exists()


def test_names_may_look_like_numbers(config):
    """YAML reads ``224:`` as a number, whether it names a model, data or a category."""
    file = config()
    content = yaml.safe_load(file.read_text())
    content["models"] = {224: content["models"]["DN2"], 0.5: content["models"]["Defend"]}
    content["data"] = {2012: {**content["data"]["VOC"], "categories": {3: "dog"}}}
    content |= {
        "title": 7,
        "reference": 0.5,
        "cells": [{"models": 224}, {"models": [0.5], "data": 2012, "categories": 3}],
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    comparison = load(file)
    assert (comparison.models, comparison.data) == (["224", "0.5"], ["2012"])
    assert (comparison.title, comparison.reference) == ("7", "0.5")
    assert [str(cell) for cell in comparison.cells] == ["224 | 2012 | 3 | seed 0", "0.5 | 2012 | 3 | seed 0"]
    assert comparison.cells[0].folder == "224__2012__3__seed0"
    twice = {**content, "models": {0.5: content["models"][224], "0.5": content["models"][224]}}
    file.write_text(yaml.safe_dump(twice))
    with pytest.raises(ComparisonError, match="models: two entries have the same name"):
        load(file)


def test_unknown_variable(config, tmp_path, capsys):
    assert main(["benchmark", "run", str(config()), "--set", "rot=/x"]) == 1
    assert "no 'rot', only root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--set", "root"], "NAME=VALUE: root"), (["--jobs", "0"], "PositiveInt"), (["--threads", "x"], "threads")],
)
def test_bad_options(config, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["benchmark", "run", str(config()), *arguments])
    assert message in capsys.readouterr().err


def test_another_file_of_the_same_name_is_refused(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anomalib_defend.commands.benchmark.RESULTS", tmp_path / "runs")
    first = config()
    save(load(first), tmp_path / "runs" / "tiny")
    second = tmp_path / "other" / "tiny.yaml"
    second.parent.mkdir()
    second.write_text(first.read_text())
    assert main(["benchmark", "run", str(second), "--dry-run"]) == 1
    assert f"holds the results of {first}: name a folder" in capsys.readouterr().err
    assert main(["benchmark", "run", str(first), "--dry-run"]) == 0


def test_one_run_at_a_time_works_in_a_folder(run):
    run.folder.mkdir()
    with driver._alone(run.folder), pytest.raises(ComparisonError, match="another run is working in"):
        run({"A": {}})
    assert run({"A": {}}) == {}


def test_cells_where_nothing_is_forked(run, monkeypatch):
    """As on macOS, on Windows, and with a GPU."""
    monkeypatch.setattr(driver, "_context", lambda _: multiprocessing.get_context("spawn"))
    assert run({"A": {}, "Broken": {"error": "ValueError: no"}}, ["dog"]) == {
        "Broken | VOC | dog | seed 0": "ValueError: no"
    }
    assert folders(run) == names(("A", "dog"), ("Broken", "dog"))


def test_no_cell_that_wants_a_gpu_is_forked():
    assert driver._context("cuda").get_start_method() == "spawn"
    assert driver._context("cpu").get_start_method() == ("forkserver" if sys.platform == "linux" else "spawn")


def test_a_full_disk_fails_the_cell_and_not_the_others(run, monkeypatch):
    mkdir = Path.mkdir

    def full(self, *args, **kwargs):
        if "A__VOC__dog" in self.name:
            raise OSError(28, "No space left on device")
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", full)
    assert run({"A": {}}) == {"A | VOC | dog | seed 0": "[Errno 28] No space left on device"}
    assert folders(run) == names(("A", "cat"))


@pytest.mark.slow
def test_cells_by_anomalibs_pipeline(config, tmp_path, capfd):
    """DN2, Defend and a cell that fails in fit, in processes of their own; and then only what has changed."""
    broken = {**yaml.safe_load(config().read_text())["models"]["Defend"], "trainer": {"max_epochs": 7}}
    results = tmp_path / "results"
    arguments = ["benchmark", "run", str(config(models__Broken=broken)), "--results", str(results), "--jobs", "2"]
    assert main(arguments) == 1
    assert "FAILED Broken | VOC | dog | seed 0: ValueError: " in capfd.readouterr().err
    for folder in results.glob("D*"):
        content = json.loads((folder / "result.json").read_text())
        scores = pd.read_csv(folder / "scores.csv")
        assert len(scores) == content["size"]["test_images"]
        # Defend and DN2 keep the order of the scores: anomalib's metric after post-processing is that of the raw ones
        assert content["row"]["image_AUROC"] == pytest.approx(roc_auc_score(scores.label, scores.score), abs=1e-6)
        assert content["measured"]["images_per_second"] > 0
        assert set(scores["called"]) <= {0, 1}
        assert scores["categories"].str.contains("dog").tolist() == (scores.label == 0).tolist()
        assert content["measured"]["parameters"] > 100_000
        assert 0 < content["row"]["fit_duration"] < content["seconds"]
        job = yaml.safe_load((folder / "job.yaml").read_text())["benchmark"]
        assert job["model"]["init_args"]["visualizer"] is False
        assert job["data"]["init_args"]["seed"] == 0
        assert not list(folder.rglob("*.jpg"))
    before = {path: path.stat().st_mtime for path in results.glob("*/result.json")}
    assert len(before) == 2
    config()  # without the broken one
    assert main(arguments) == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"Results: {results}", f"Next: anomalib-defend benchmark report {results} --out tiny.html"
    ]  # fmt: skip
    assert before == {path: path.stat().st_mtime for path in results.glob("*/result.json")}
    assert main(["benchmark", "report", str(results), "--plots", str(tmp_path / "plots")]) == 0
    assert "| VOC | dog |" in capfd.readouterr().out
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"auroc.png", "difference.png", "cost.png"}


@pytest.mark.slow
def test_anomalibs_models_as_the_papers_tables_have_them(config, tmp_path):
    """RD4AD and GeneralAD of ``uni_class.yaml``, but for random small encoders and one epoch."""
    models = yaml.safe_load((CONFIGS / "uni_class.yaml").read_text())["models"]
    small = {
        "RD4AD": {"backbone": "resnet18", "pre_trained": False},
        "GeneralAD": {"backbone": "vit_tiny_patch16_224", "pre_trained": False, "epochs": 1},
    }
    chosen = {
        name: {
            "class_path": models[name]["class_path"],
            "init_args": {**models[name].get("init_args", {}), **changes},
            "trainer": {**models[name]["trainer"], "max_epochs": 1},
        }
        for name, changes in small.items()
    }
    results = tmp_path / "results"
    assert main(["benchmark", "run", str(config(models=chosen)), "--results", str(results)]) == 0
    folders = [path.parent for path in results.glob("*/result.json")]
    assert sorted(folder.name.partition("__")[0] for folder in folders) == ["GeneralAD", "RD4AD"]
    for folder in folders:
        content = json.loads((folder / "result.json").read_text())
        scores = pd.read_csv(folder / "scores.csv")
        assert len(scores) == content["size"]["test_images"]
        assert scores.score.nunique() > 1
        assert 0 <= content["row"]["image_AUROC"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_killed_driver_leaves_no_cell_behind(config, tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, "-m", "anomalib_defend", "benchmark", "run", str(config()), "--results", str(results)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(results.glob("*/log.txt")), 240)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [folder] = [path.parent for path in results.glob("*/log.txt")]
    wait_for(lambda: not cells_in(folder), 30)
    assert not (folder / "result.json").exists()


def cells_in(folder: Path) -> list[Path]:
    """Processes whose working directory is the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or another user's
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_gpu_that_is_not_there_is_refused(config, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["benchmark", "run", str(config(accelerator="cuda"))]) == 1
    assert "no GPU" in capsys.readouterr().err


def test_an_inputs_size_is_known_of_a_model_that_takes_its_encoders(config):
    """Else one at 448 pixels would seem to cost 200,000 times as much."""
    init_args = {"backbone": "vit_digits_patch8_96", "pre_trained": False}
    models = {
        "own": {"class_path": "DN2", "init_args": init_args},
        "given": {"class_path": "DN2", "init_args": {**init_args, "image_size": 48}},
    }
    comparison = complete(load(config(models=models)))
    pixels = {cell.model: check(comparison)[cell.key].pixels for cell in comparison.cells}
    assert pixels == {"own": 96 * 96, "given": 48 * 48}
