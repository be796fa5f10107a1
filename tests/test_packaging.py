"""What the package may import: what it declares, and nothing of the clone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anomalib_defend._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anomalib_defend"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_BY_OTHERS = {"openvino", "onnx", "onnxscript"}  # by anomalib's and torch's exporters
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # not called like what is imported


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


TOOLS = {"dev", "docs"}  # extras of those who work on the package

CORE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(texts) for name, texts in PROJECT["optional-dependencies"].items() if name not in TOOLS}


def imported(file: Path) -> Iterator[str]:
    """Top-level names that a file imports when it runs, from wherever in it."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for child in node.orelse:
                yield from visit(child)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(file.read_text(encoding="utf-8")))


def distributions(file: Path) -> set[str]:
    """Names of the packages of others that a file imports."""
    others = {name for name in imported(file) if name not in sys.stdlib_module_names and name != "anomalib_defend"}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in others}


def test_what_is_imported_is_declared() -> None:
    for file in FILES:
        undeclared = distributions(file) - CORE - set().union(*EXTRAS.values())
        assert not undeclared, f"{file.relative_to(ROOT)} imports {undeclared}, which pyproject.toml does not declare"


def test_what_is_declared_is_imported() -> None:
    everything = set().union(*map(distributions, FILES))
    assert everything >= CORE
    for extra in EXTRAS.values():
        assert everything | IMPORTED_BY_OTHERS >= extra


def test_extras_are_imported_where_they_are_needed_alone() -> None:
    """In a function, or in a module that no other imports at its top."""
    optional = set().union(*EXTRAS.values())
    modules = {"benchmark/plots.py": {"matplotlib"}}
    for file in FILES:
        top = {
            canonicalize_name(name)
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            for name in imported_by(node)
        }
        assert top & optional <= modules.get(file.relative_to(PACKAGE).as_posix(), set())


def imported_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [node.module.partition(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_the_package_imports_nothing_of_the_clone() -> None:
    for file in FILES:
        assert not {"measurements", "tests", "miniatures"} & set(imported(file)), file


def test_the_version_is_a_leaf() -> None:
    assert not list(imported(PACKAGE / "_version.py"))


def test_commands_are_light_until_they_run() -> None:
    for file in sorted((PACKAGE / "commands").glob("*.py")):
        top = {
            name
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        others = {name for name in top if name.partition(".")[0] not in sys.stdlib_module_names}
        light = {f"anomalib_defend.{name}" for name in ("_autoload", "_version", "console")}
        assert others <= {"jsonargparse", "jsonargparse.typing", *light}, file


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__.partition(".dev")[0]
    assert citation["license"] == PROJECT["license"]
