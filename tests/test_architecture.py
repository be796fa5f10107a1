"""Imports go one way: nn <- models/*/torch_model <- models/*/lightning_model; data and models never see each other."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anomalib_defend

NAME = "anomalib_defend"
PACKAGE = Path(anomalib_defend.__file__).parent
FILES = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}

TENSORS = {"torch", "torchvision", "timm", "einops", "safetensors", "huggingface_hub", "sklearn", "threadpoolctl"}
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
DRIVERS = ("benchmark", "example", "commands")
# the part of a model that sees Lightning
TRAINING = {"lightning_model.py", "training.py", "stages.py", "batches.py", "checkpoints.py"}


def imports(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, relative ones resolved: ``from .loss import f`` -> ``...loss.f``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                # the directory of a file is its package, for an __init__.py too
                package = [NAME, *file.relative_to(PACKAGE).parts[: -node.level]]
                module = ".".join([*package, *filter(None, [module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def own(*parts: str) -> list[str]:
    return [f"{NAME}.{part}" for part in parts]


def allowed(path: str, name: str) -> bool:  # noqa: PLR0911 - one return for each rule
    """Whether the file at ``path`` may import ``name``."""
    top, part = name.partition(".")[0], path.partition("/")[0]
    if top in sys.stdlib_module_names:
        return True
    if path in {"_autoload.py", "__init__.py"}:  # run at every start of the interpreter
        return path == "__init__.py" and within(name, *own("data", "models", "_version"))  # for type checkers
    if part == "nn":
        return top in TENSORS or within(name, *own("nn"))
    if part == "models" and Path(path).name in {"torch_model.py", "loss.py"}:
        folder = ".".join([NAME, *Path(path).parent.parts])
        return top in TENSORS or name == "anomalib.data.InferenceBatch" or within(name, *own("nn"), folder)
    if within(name, *own(*DRIVERS)):  # a command drives the others
        return within(name, *own(part)) if part in {"benchmark", "example"} else part in {"commands", "__main__.py"}
    if top in LIGHTNING:
        return Path(path).name in TRAINING or part in {"pre_processing", "post_processing", *DRIVERS}
    if part == "data":
        return not within(name, *own("models", "nn"), "anomalib.models")
    if part == "models":
        return not within(name, *own("data"))
    return True


@pytest.mark.parametrize("path", FILES)
def test_imports_go_one_way(path: str) -> None:
    wrong = [name for name in imports(FILES[path]) if not allowed(path, name)]
    assert not wrong, f"src/{NAME}/{path} must not import {', '.join(wrong)} (see {Path(__file__).name})"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("nn/vit.py", "anomalib.data.InferenceBatch"),
        ("nn/vit.py", "lightning.LightningModule"),
        ("nn/vit.py", f"{NAME}.models.defend.loss.dense_loss"),
        ("models/defend/torch_model.py", "anomalib.data.ImageBatch"),
        ("models/defend/torch_model.py", "lightning.pytorch.Trainer"),
        ("models/defend/torch_model.py", f"{NAME}.models.knn.torch_model.Knn"),
        ("models/defend/lightning_model.py", f"{NAME}.data.SemanticVOC"),
        ("models/defend/lightning_model.py", f"{NAME}.example.scenes.load_part"),
        ("data/voc.py", f"{NAME}.models.Defend"),
        ("data/voc.py", "lightning.LightningDataModule"),
        ("example/scenes.py", f"{NAME}.benchmark.report"),
        ("benchmark/driver.py", f"{NAME}.commands.main"),
        ("_autoload.py", "torch"),
    ],
)
def test_the_rules_forbid(path: str, name: str) -> None:
    assert not allowed(path, name)


def test_relative_imports_are_resolved() -> None:
    names = {path: set(imports(file)) for path, file in FILES.items()}
    assert f"{NAME}.models.defend.Defend" in names["models/__init__.py"]
