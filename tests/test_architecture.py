"""Imports go one way, those for type checkers included, and every folder's docstring is true.

``nn`` <- ``models/*/torch_model`` <- ``models/components`` <- ``models/*``; ``files`` is below
all that know files. Data and models do not see each other, models never import each other, and the trainer is known to
``models/components`` alone.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import anomalib_defend

NAME = "anomalib_defend"
PACKAGE = Path(anomalib_defend.__file__).parent
FILES = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}

ARITHMETIC = {"torch", "torchvision", "timm", "einops", "sklearn", "threadpoolctl", "numpy"}  # no network, hub or file
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
PROGRAMS = ("benchmark", "commands", "example")  # they drive the rest, which does not know them
NETWORKS = {"torch_model.py", "loss.py", "generator.py"}


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
    folder = ".".join([NAME, *Path(path).parent.parts])
    if path == "_version.py":  # a leaf
        return False
    if top in sys.stdlib_module_names:
        return True
    if path in {"_autoload.py", "__init__.py"}:  # run at every start of the interpreter
        return path == "__init__.py" and within(name, *own("data", "models", "_version"))  # for type checkers
    if part == "files":
        return within(name, *own("files")) or name == "torchvision.datasets.folder.IMG_EXTENSIONS"
    if part == "nn":
        return top in ARITHMETIC or within(name, *own("nn"))
    if part == "models" and Path(path).name in NETWORKS:
        return (
            top in {*ARITHMETIC, "diffusers"}
            or name == "anomalib.data.InferenceBatch"
            or within(name, *own("nn"), folder)
        )
    if within(name, *own(*PROGRAMS)):  # a command drives the others
        if part in {"benchmark", "example"}:
            return within(name, *own(part))
        return part in {"commands", "__main__.py"} or (path, name) == ("models/__init__.py", f"{NAME}.example.encoder")
    if top in LIGHTNING:
        callbacks = {"pre_processing", "post_processing", "visualization"}
        return part in {*callbacks, *PROGRAMS} or path.startswith("models/components/")
    if part == "data":
        return not within(name, *own("models", "nn"), "anomalib.models")
    if part == "models" and within(name, *own("models")) and path != "models/__init__.py":
        return within(name, folder, *own("models.components"))  # its own folder, and what all share
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
        ("_version.py", "os"),
        ("_autoload.py", "torch"),
        ("nn/vit.py", "anomalib.data.InferenceBatch"),
        ("nn/vit.py", "lightning.LightningModule"),
        ("nn/vit.py", "huggingface_hub.hf_hub_download"),
        ("nn/vit.py", f"{NAME}.example.encoder"),
        ("nn/vit.py", f"{NAME}.models.defend.loss.dense_loss"),
        ("models/defend/torch_model.py", "anomalib.data.ImageBatch"),
        ("models/defend/torch_model.py", "lightning.pytorch.Trainer"),
        ("models/defend/torch_model.py", f"{NAME}.models.components.teacher_cache.TeacherCache"),
        ("models/defend/stages.py", "lightning.pytorch.Trainer"),
        ("models/defend/lightning_model.py", f"{NAME}.models.dn2.torch_model.DN2Model"),
        ("models/components/stage.py", f"{NAME}.models.dn2.torch_model.DN2Model"),
        ("models/defend/lightning_model.py", f"{NAME}.data.SemanticVOC"),
        ("models/defend/lightning_model.py", f"{NAME}.example.scenes.load_part"),
        ("data/voc.py", f"{NAME}.models.Defend"),
        ("data/voc.py", "lightning.LightningDataModule"),
        ("post_processing/metrics.py", f"{NAME}.benchmark.plan"),
        ("example/scenes.py", f"{NAME}.benchmark.report"),
        ("benchmark/driver.py", f"{NAME}.commands.main"),
    ],
)
def test_the_rules_forbid(path: str, name: str) -> None:
    assert not allowed(path, name)


def test_relative_imports_are_resolved() -> None:
    names = {path: set(imports(file)) for path, file in FILES.items()}
    assert f"{NAME}.models.defend.Defend" in names["models/__init__.py"]


def test_no_file_imports_itself_on_any_way() -> None:
    """The package's own ``__init__`` apart, which imports nothing while it runs."""
    modules = {
        ".".join([NAME, *Path(path).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in FILES
        if path != "__init__.py"
    }

    def module_of(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    graph = {
        module: {found for name in imports(FILES[path]) if (found := module_of(name)) and found != module}
        for module, path in modules.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
