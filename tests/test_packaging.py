"""What the package may import: what it declares, and nothing of the clone; what the documentation tells, exists."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anomalib_defend import commands
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
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(PACKAGE.rglob("*.md")),
    *sorted(PACKAGE.rglob("*.yaml")),
]


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


CORE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(texts) for name, texts in PROJECT["optional-dependencies"].items() if name != "dev"}


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


# --------------------------------------------------------------------------------------------------- documentation


def told(pattern: str) -> list[tuple[str, str]]:
    """Document and command of every command line that matches, continued lines joined."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"\\\n[ #]*", " ", document.read_text(encoding="utf-8"))
        name = document.relative_to(ROOT).as_posix()
        found += [(name, match.group().strip(" `")) for match in re.finditer(pattern, text)]
    return found


# in a block of code, or between backquotes
OURS = sorted(
    set(told(r"(?:(?<=\n)|(?<=`)|(?<=#   ))anomalib-defend +(?:benchmark \w+|example|report|threshold) [^`\n]+"))
)


@pytest.mark.parametrize(("document", "command"), OURS, ids=[command for _, command in OURS])
def test_our_commands_can_be_parsed(document: str, command: str) -> None:
    arguments = shlex.split(command.partition("  #")[0])[1:]
    commands.make_parser(arguments).parse_args(arguments)


def test_the_documents_tell_our_commands() -> None:
    assert {document for document, _ in OURS} >= {"README.md", "docs/benchmarks.md", "docs/measurements.md"}


def test_modules_that_are_told_exist() -> None:
    modules = told(r"python -m (?:anomalib_defend|measurements)(?:\.[a-z_]+)+")
    assert modules
    for document, command in modules:
        parts = command.removeprefix("python -m ").split(".")
        base = (PACKAGE if parts[0] == "anomalib_defend" else ROOT / parts[0]).joinpath(*parts[1:])
        assert base.with_suffix(".py").is_file() or (base / "__main__.py").is_file(), f"{document}: {command}"


def test_a_document_that_needs_a_clone_says_so() -> None:
    """Programs of ``measurements`` and the files of ``configs`` are in no wheel."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if re.search(r"python -m measurements|--config configs/|--data configs/|\bmake [a-z]", text):
            assert re.search(r"\bclone\b", text), f"{document.relative_to(ROOT)} does not say that it needs a clone"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__.partition(".dev")[0]
    assert citation["license"] == PROJECT["license"]


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        if document.suffix == ".md":
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
                if "://" not in target:
                    assert (document.parent / target).exists(), f"{document.relative_to(ROOT)}: {target}"
