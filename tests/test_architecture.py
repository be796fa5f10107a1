"""Imports go one way, those for type checkers included, and every folder's docstring is true.

``nn`` <- ``models/*/torch_model`` <- ``models/components`` <- ``models/*``; ``files`` is below
all that know files. Data and models do not see each other, models never import each other, and the trainer is known to
``models/components`` alone.
"""

import ast
import re
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
NETWORKS = {"torch_model.py", "loss.py", "generator.py", "transformer.py"}
# what networks and pure functions have no use for: files, memory maps, processes, the network
OUTSIDE = {
    "ctypes", "ftplib", "glob", "http", "io", "mmap", "multiprocessing", "os", "pathlib", "pickle", "shelve", "shutil",
    "socket", "sqlite3", "ssl", "subprocess", "tarfile", "tempfile", "urllib", "zipfile",
}  # fmt: skip
REACHING = re.compile(r"\b(open|from_pretrained|hf_hub_download|from_file|memmap)$|^torch\.(load|save|hub\b)")
TOLD = {"accumulate_grad_batches", "callbacks", "max_epochs", "max_steps", "optimizers", "setup_optimizers"}


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


def is_pure(path: str) -> bool:
    """Whether a file holds networks or pure functions alone."""
    return path.startswith("nn/") or (path.startswith("models/") and Path(path).name in NETWORKS)


def allowed(path: str, name: str) -> bool:  # noqa: PLR0911 - one return for each rule
    """Whether the file at ``path`` may import ``name``."""
    top, part = name.partition(".")[0], path.partition("/")[0]
    folder = ".".join([NAME, *Path(path).parent.parts])
    if path == "_version.py":  # a leaf
        return False
    if top in sys.stdlib_module_names:
        return top not in OUTSIDE or not is_pure(path)
    if path in {"_autoload.py", "__init__.py"}:  # run at every start of the interpreter
        return path == "__init__.py" and within(name, *own("data", "models", "_version"))  # for type checkers
    if part == "files":
        return within(name, *own("files"), "PIL", "rich") or name == "torchvision.datasets.folder.IMG_EXTENSIONS"
    if part == "nn":
        return top in ARITHMETIC or within(name, *own("nn"))
    if is_pure(path):
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
        ("nn/vit.py", "urllib.request"),
        ("models/defend/torch_model.py", "mmap"),
        ("models/uniad/transformer.py", "pathlib.Path"),
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


@pytest.mark.parametrize("path", [path for path in FILES if is_pure(path)])
def test_networks_reach_no_hub_and_no_file(path: str) -> None:
    """By what they call, either: timm and torch can do both."""
    for call in (node for node in ast.walk(ast.parse(FILES[path].read_text())) if isinstance(node, ast.Call)):
        assert not REACHING.search(ast.unparse(call.func)), ast.unparse(call)
        assert "pretrained" not in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


@pytest.mark.parametrize("call", ["open", "path.open", "torch.load", "torch.hub.load", "UNet2DModel.from_pretrained"])
def test_such_calls_are_seen(call: str) -> None:
    assert REACHING.search(call)
    assert not REACHING.search("timm.create_model")


def test_the_docstring_of_nn_names_all_that_it_stands_on() -> None:
    text = ast.get_docstring(ast.parse(FILES["nn/__init__.py"].read_text())) or ""
    stated = set(re.split(r", | and ", re.findall(r", on (.+) alone\.", text)[0]))
    imported = {name.partition(".")[0] for path in FILES if path.startswith("nn/") for name in imports(FILES[path])}
    assert imported - set(sys.stdlib_module_names) - {NAME} == stated


@pytest.mark.parametrize("folder", ["app", "benchmark", "example", "reporting", "scoring"])
def test_a_folders_reading_order_names_every_file(folder: str) -> None:
    text = ast.get_docstring(ast.parse(FILES[f"{folder}/__init__.py"].read_text())) or ""
    files = {Path(path).stem for path in FILES if Path(path).parent.as_posix() == folder} - {"__init__"}
    assert not [name for name in files if not re.search(rf"\b{name}\b", text)]


def changes(source: str) -> Iterator[str]:
    """What a file assigns to, deletes, or calls to change it in place: ``trainer.callbacks.remove``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            yield ".".join(ast.unparse(argument) for argument in node.args[:2])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func)


def tells_the_trainer(change: str) -> bool:
    """Whether it decides what a trainer does: its limits, callbacks, optimisers or its number of epochs and steps."""
    whom, *names = change.split(".")
    names = names[:-1] if names and names[-1] in {"append", "clear", "extend", "insert", "pop", "remove"} else names
    ours = whom in {"trainer", "loop"} or "trainer" in names
    return ours and bool(names) and (names[-1] in TOLD or names[-1].startswith("limit_"))


@pytest.mark.parametrize("path", FILES)
def test_one_file_tells_the_trainer_what_to_do(path: str) -> None:
    told = [change for change in changes(FILES[path].read_text()) if tells_the_trainer(change)]
    assert bool(told) == (path == "models/components/stage_runner.py"), told


@pytest.mark.parametrize(
    ("source", "tells"),
    [
        ("trainer.limit_val_batches = 0", True),
        ("self.trainer.fit_loop.max_epochs = 3", True),
        ("trainer.callbacks, other = [], 1", True),
        ("trainer.callbacks.remove(bar)", True),
        ("trainer.strategy.setup_optimizers(trainer)", True),
        ("self.trainer.strategy.checkpoint_io = ours", False),
        ("self.max_epochs = trainer.max_epochs", False),
        ("trainer.save_checkpoint(path)", False),
    ],
)
def test_what_tells_the_trainer(source: str, tells: bool) -> None:
    assert any(map(tells_the_trainer, changes(source))) == tells
