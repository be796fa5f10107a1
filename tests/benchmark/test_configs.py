"""Every comparison of the package can be parsed, and its models and data can be built."""

import re
from pathlib import Path

import pytest
import timm
import torch
import yaml

from anomalib_defend.benchmark.build import build, complete
from anomalib_defend.benchmark.expand import CONFIGS, find, load
from anomalib_defend.benchmark.papers import figures
from anomalib_defend.benchmark.plan import ComparisonError
from anomalib_defend.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES

FILES = sorted(CONFIGS.glob("*.yaml"))
OURS = ("reduced", "digits", "photographs", "objects", "defend_looks", "defend_rate")  # not the paper's
COUNTS = {  # categories of each data set
    "CIFAR-10 uni-class": 10, "CIFAR-100 uni-class": 20, "Fashion-MNIST uni-class": 10, "CIFAR-10 splits": 4,
    "CIFAR-10 leave-one-out": 10, "Fashion-MNIST leave-one-out": 10, "MNIST leave-one-out": 10, "VOC uni-class": 20,
    "VOC leave-one-out": 20, "COCO uni-class": 80, "COCO leave-one-out": 80, "MVTec AD": 15,
    "CIFAR-10 against CIFAR-100": 10,
}  # fmt: skip
_ALL, _SMALL = "DN2 | Defend | ObjectPrototypes", "Fitymi | ARNet"
METHODS = {  # columns of the papers' tables
    "uni_class": f"{_ALL} | {_SMALL} | Transformaly | Transformaly, 224 | Deep SVDD | KDAD | KDAD, ViT | MSAD | "
    "PANDA | RD4AD | GeneralAD",
    "leave_one_out": f"{_ALL} | {_SMALL} | Transformaly | Transformaly, 224 | KDAD | KDAD, ViT | MSAD | RD4AD",
    "splits": f"{_ALL} | {_SMALL} | Transformaly | UniAD | FCDD | FCDD+OE | KDAD | KDAD, ViT | PANDA",
    "voc": f"{_ALL} | {_SMALL} | Transformaly | Deep SVDD | KDAD | KDAD, ViT | MSAD | RD4AD",
    "coco": f"{_ALL} | Transformaly | KDAD | KDAD, ViT | MSAD | RD4AD",
    "mvtec": f"DN2 | Defend, pixel variant | ObjectPrototypes | {_SMALL} | Transformaly | UniAD | KDAD | KDAD, ViT | "
    "MSAD | PANDA",
    "near_distribution": f"{_ALL} | {_SMALL} | MSAD",
}
QUOTED = {"CSI"}  # not built
UNNORMALISED = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[] if file.stem in {"reduced", "voc"} else pytest.mark.slow) for file in FILES],
    ids=lambda file: file.stem,
)
def test_it_parses_and_builds(file, monkeypatch):
    create = timm.create_model  # anomalib's models fetch their weights when they are built
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kwargs: create(name, **kwargs))
    comparison = complete(load(file))
    models = {repr({**cell.model_settings["init_args"], "seed": None}): cell for cell in comparison.cells}
    for cell in models.values():
        with torch.device("meta"):  # no memory and no weights
            assert build("model", cell.model_settings).visualizer is None
    for cell in {cell.data: cell for cell in comparison.cells}.values():
        datamodule = build("data", cell.data_settings)
        assert datamodule.seed == cell.seed
        assert datamodule.category
    assert len({cell.folder for cell in comparison.cells}) == len(comparison.cells)
    assert len({cell.key for cell in comparison.cells}) == len(comparison.cells)
    for table in comparison.papers.values():
        assert figures(table)


@pytest.mark.parametrize("file", [file for file in FILES if not file.stem.startswith(OURS)], ids=lambda file: file.stem)
def test_the_papers_tables_are_complete(file):
    comparison = load(file)
    for data in comparison.data:
        categories = {cell.category for cell in comparison.cells if cell.data == data}
        assert len(categories) == COUNTS[data]
        names = {"CIFAR-10": CIFAR10_CLASSES, "CIFAR-100": CIFAR100_CLASSES}.get(data.removesuffix(" uni-class"))
        assert names is None or categories == set(names)
        methods = {cell.model for cell in comparison.cells if cell.data == data}
        assert methods == (set(METHODS[file.stem].split(" | ")) if file.stem in METHODS else set(comparison.models))
    assert {cell.seed for cell in comparison.cells} == {0, 1, 2}
    assert comparison.reference == "DN2"


@pytest.mark.parametrize("name", [*METHODS, "ablation_defend", "ablation_mask"])
def test_every_figure_of_a_paper_has_a_column_beside_it(name):
    comparison = load(find(name))
    assert set(comparison.papers) == set(comparison.data)
    for data, table in comparison.papers.items():
        methods = {cell.model for cell in comparison.cells if cell.data == data}
        categories = {cell.category for cell in comparison.cells if cell.data == data}
        for method, rows in figures(table).items():
            assert set(rows) <= {*categories, "mean"}
            ours = re.sub(r"^FITYMI$", "Fitymi", re.sub(r",? ViT-S/16$|\*$", "", method))
            assert {ours, re.sub(", (384|224|from scratch|ViT-B)$", "", ours)} & methods or method in QUOTED


@pytest.mark.parametrize(
    ("name", "data", "size", "epochs"),
    [
        ("uni_class", "Fashion-MNIST uni-class", 32, 50),
        ("leave_one_out", "Fashion-MNIST leave-one-out", 32, 50),
        ("leave_one_out", "MNIST leave-one-out", 32, 50),
        ("mvtec", "MVTec AD", 128, 600),
    ],
)
def test_kdad_has_its_papers_inputs(name, data, size, epochs):
    """MNIST and Fashion-MNIST at 32 pixels, MVTec AD at 128, all in [0, 1] and not normalised."""
    cells = [cell for cell in load(find(name)).cells if cell.model == "KDAD" and cell.data == data]
    for cell in cells:
        settings = cell.model_settings["init_args"]
        assert (settings["image_size"], settings["epochs"]) == (size, epochs)
        assert settings["pre_processor"]["init_args"] == {"image_size": [size, size], **UNNORMALISED}
        assert cell.data_settings["init_args"]["train_batch_size"] == 64
    assert len(cells) == 3 * COUNTS[data]


def test_the_reduced_set_is_the_issues():
    comparison = load(find("reduced"), {"voc": "/data/voc", "weights": "/w.pth"})
    cells = {(cell.model, cell.data, cell.category, cell.seed) for cell in comparison.cells}
    rows = {("VOC uni-class", name) for name in ("dog", "cat", "horse", "cow")} | {("VOC leave-one-out", "dog")}
    rows |= {("CIFAR-10 uni-class", name) for name in ("airplane", "cat", "ship")} | {("CIFAR-10 split", "01234")}
    rows |= {("Fashion-MNIST uni-class", name) for name in ("Sneaker", "Coat")}
    for model in ("DN2", "Defend"):
        assert {(data, category, seed) for name, data, category, seed in cells if name == model} == {
            *((data, category, seed) for data, category in rows for seed in (0, 1, 2)),
            ("COCO mini, smoke test", "person", 0),
        }
    for cell in comparison.cells:
        assert cell.data_settings["init_args"]["max_train_images"] == 300
        assert cell.data_settings["init_args"]["max_test_images"] == 500
        assert cell.model_settings["init_args"]["weights"] == "/w.pth"
        if cell.data.startswith("VOC"):
            assert cell.data_settings["init_args"]["root"] == "/data/voc"


def test_settings_of_defend_are_selected_on_cells_that_no_table_shows():
    names = ("reduced", "photographs", "defend_looks", "defend_rate")
    cells = [cell for name in names for cell in load(find(name)).cells if "VOC" in cell.data_settings["class_path"]]
    selected = [cell for cell in cells if cell.data.startswith("VOC, selection")]  # or "..., trained on parts"
    assert {cell.category for cell in selected} == {"dog+sheep", "cow+horse", "sheep", "cat+dog"}
    assert {cell.seed for cell in selected} == {0}
    shown = {cell.category for cell in cells if cell.model.startswith("Defend") and cell not in selected}
    assert not shown & {cell.category for cell in selected}


# ------------------------------------------------------------------------------------------------------ expansion


@pytest.fixture
def write(tmp_path):
    def write(content):
        file = tmp_path / "small.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return file

    return write


SMALL = {
    "seeds": [0, 1],
    "trainer": {"max_epochs": 2},
    "models": {
        "A": {"class_path": "A", "init_args": {"x": 1, "y": 1}},
        "B": {"class_path": "B", "trainer": {"max_epochs": 3}},
    },
    "data": {
        "D": {"class_path": "D", "categories": {"two": [1, 2], "one": 1}, "model_args": {"x": 2}},
        "E": {"class_path": "E", "init_args": {"root": "here"}},
    },
}


def test_every_combination_is_a_cell(write):
    comparison = load(write(SMALL))
    assert {(cell.model, cell.data, cell.category, cell.seed) for cell in comparison.cells} == {
        (model, data, category, seed)
        for model in "AB"
        for data, category in (("D", "two"), ("D", "one"), ("E", "all"))
        for seed in (0, 1)
    }
    assert comparison.reference == "A"


def test_overrides_from_the_general_to_the_special(write):
    blocks = [
        {"models": ["A"]},
        {"models": ["A"], "data": "D", "categories": ["two"], "seeds": [7], "model_args": {"y": 3}},
    ]
    blocks.append({"models": ["B"], "data": ["E"], "seeds": [0], "trainer": {"max_epochs": 4}, "data_args": {"k": 5}})
    cells = {(c.model, c.data, c.category, c.seed): c for c in load(write({**SMALL, "cells": blocks})).cells}
    assert len(cells) == 6 + 1 + 1
    assert cells["A", "D", "two", 0].model_settings["init_args"] == {"x": 2, "y": 1}
    assert cells["A", "D", "two", 7].model_settings["init_args"] == {"x": 2, "y": 3}
    assert cells["A", "D", "two", 7].data_settings["init_args"] == {"category": [1, 2]}
    assert cells["A", "E", "all", 0].model_settings["init_args"] == {"x": 1, "y": 1}
    assert cells["A", "E", "all", 0].trainer == {"max_epochs": 2}
    assert cells["B", "E", "all", 0].trainer == {"max_epochs": 4}
    assert cells["B", "E", "all", 0].data_settings["init_args"] == {"root": str(Path("here").absolute()), "k": 5}


def test_any_setting_changes_the_key(write):
    def keys(**changes):
        return {cell.key for cell in load(write({**SMALL, **changes})).cells}

    assert keys() == keys()
    assert not keys() & keys(trainer={"max_epochs": 3, "precision": 16})
    assert not keys() & keys(accelerator="cuda")
    assert len(keys() & keys(models={**SMALL["models"], "B": {"class_path": "B"}})) == 6  # A's


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "must hold a mapping"),
        ("a: [", "not valid YAML"),
        ("models: ${variables.x}", "small.yaml"),
        ({name: value for name, value in SMALL.items() if name != "data"}, "data is missing"),
        ({**SMALL, "data": {}}, "data is empty"),
        ({**SMALL, "models": {"A": {"init_args": {}}}}, "models.A: class_path is missing"),
        ({**SMALL, "models": {"A": {"class_path": "A", "args": {}}}}, "models.A: unknown key args"),
        ({**SMALL, "data": {"D": {"class_path": "D", "categories": "dog"}}}, "data.D.categories must be a list"),
        ({**SMALL, "cells": [{"models": ["C"]}]}, r"cells\[0\].models: unknown C; there is A, B"),
        ({**SMALL, "cells": [{"data": ["D"], "categories": ["three"]}]}, "unknown three; there is one, two"),
    ],
)
def test_a_malformed_file_is_refused(write, content, message):
    with pytest.raises(ComparisonError, match=message):
        load(write(content))


def test_no_such_file(tmp_path):
    with pytest.raises(ComparisonError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_a_comparison_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("reduced") == find("reduced.yaml") == CONFIGS / "reduced.yaml"
    own = tmp_path / "reduced.yaml"
    own.write_text("")
    assert find("reduced.yaml").absolute() == own  # a file that is there comes first
    assert find(str(own)) == own


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ComparisonError, match=r"Did you mean 'reduced' .*The package has .*digits.*voc\."):
        find("reducd")
    with pytest.raises(ComparisonError, match="is no file"):
        find("nowhere/reduced.yaml")


def test_the_readmes_example_is_read(write):
    (example,) = re.findall("```yaml\n(.*?)```", (CONFIGS / "README.md").read_text(), re.DOTALL)
    cells = load(write(example)).cells
    assert len(cells) == 2 * 2 * 3
    assert all(cell.model_settings["init_args"]["image_size"] == 224 for cell in cells)
    (alone,) = [cell for cell in cells if "dense_epochs" in cell.model_settings["init_args"]]
    assert (alone.model, alone.category, alone.seed) == ("Defend", "bolt", 0)
