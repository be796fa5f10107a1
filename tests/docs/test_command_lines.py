"""Every command of the documents is read by the parser of its own program, which stops before it does anything.

Those that a story of `test_stories.py` runs are left out.
That finds a wrong word also in a command that is marked, in the line before its block, as one that no test can run:
``<!-- needs: gpu -->``, ``download`` or ``machines``. `test_every_command.py` holds that all others are run. A
command of a program that no parser is known of has to be marked.
"""

import argparse
import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
from anomalib.cli.cli import AnomalibCLI
from jsonargparse import ArgumentParser
from packaging.requirements import Requirement
from stories import is_followed

import anomalib_defend.data  # the bare names, also where the package is not installed
import anomalib_defend.models
from anomalib_defend import commands
from anomalib_defend.benchmark.expand import find, load
from documents import DOCUMENTS, NEEDS, PACKAGE, ROOT, Command, blocks, command_lines, name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

COMMANDS = [command for command in command_lines() if not is_followed(command)]
LANGUAGES = {"bash", "text", "python", "yaml", "bibtex"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()


class ParsedError(Exception):
    """The arguments were understood."""


@pytest.fixture(scope="module")
def anomalib_parser() -> ArgumentParser:
    """That of anomalib's command line, which takes seconds to build."""
    parsers: list[ArgumentParser] = []

    def keep(parser: ArgumentParser, **_kwargs: object) -> NoReturn:
        parsers.append(parser)
        raise ParsedError

    with mock.patch.object(ArgumentParser, "parse_args", keep), pytest.raises(ParsedError):
        AnomalibCLI([])
    return parsers[0]


class Checks:
    """One method for each program: it raises where the program would refuse the arguments."""

    def __init__(self, parser: ArgumentParser, patch: pytest.MonkeyPatch) -> None:
        self.parser, self.patch = parser, patch

    def of(self, program: str) -> Callable[[list[str]], None] | None:
        known = {
            "anomalib": self.anomalib, "anomalib-defend": self.ours, "python": self.python, "pytest": self.pytest,
            "make": self.make, "pip": self.pip,
        }  # fmt: skip
        return known.get(Path(program).name)

    def anomalib(self, arguments: list[str]) -> None:
        if any(argument.endswith("help") for argument in arguments):
            with pytest.raises(SystemExit, match="0"):
                self.parser.parse_args(arguments)
        else:
            self.parser.parse_args(arguments)

    def ours(self, arguments: list[str]) -> None:
        if arguments[-1] in {"--help", "--version"}:
            with pytest.raises(SystemExit, match="0"):
                commands.make_parser(arguments).parse_args(arguments)
            return
        options = commands.make_parser(arguments).parse_args(arguments)
        if arguments[:2] == ["benchmark", "run"]:
            chosen = options.benchmark.run
            if not chosen.comparison.endswith(".yaml"):  # of the reader's own
                load(find(chosen.comparison), dict(text.split("=", 1) for text in chosen.set))

    def python(self, arguments: list[str]) -> None:
        if arguments[0] == "-c":
            for known in anomalib_defend.data.__all__:  # downloads
                self.patch.setattr(getattr(anomalib_defend.data, known), "prepare_data", lambda _data: None)
            exec(compile(arguments[1], "a command", "exec"), {})  # noqa: S102
        elif arguments[0] != "-m":
            assert (ROOT / arguments[0]).is_file(), arguments[0]
        elif arguments[1] == "pytest":
            self.pytest(arguments[2:])
        elif arguments[1] == "anomalib_defend":
            self.ours(arguments[2:])
        else:
            self.module(arguments[1], arguments[2:])

    def module(self, module: str, arguments: list[str]) -> None:
        """Start it, up to the moment when it has parsed its arguments."""
        parts = module.split(".")
        base = (PACKAGE if parts[0] == "anomalib_defend" else ROOT / parts[0]).joinpath(*parts[1:])
        (file,) = (path for path in (base.with_suffix(".py"), base / "__main__.py") if path.is_file())
        if not arguments:
            return
        assert "ArgumentParser" in file.read_text(), f"{file.name} takes no arguments"
        parse = argparse.ArgumentParser.parse_args

        def stop(*args: Any, **kwargs: Any) -> NoReturn:
            parse(*args, **kwargs)
            raise ParsedError

        self.patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        self.patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(ParsedError):
            runpy.run_module(module, run_name="__main__", alter_sys=True)

    def pytest(self, arguments: list[str]) -> None:
        for path in (word for word in arguments if word.startswith("tests/")):
            assert (ROOT / path).exists(), path

    def make(self, arguments: list[str]) -> None:
        for word in arguments:
            variable, assigned, _ = word.partition("=")
            assert re.search(rf"^{variable} \?=" if assigned else rf"^{word}:", MAKEFILE, re.MULTILINE), word

    def pip(self, arguments: list[str]) -> None:
        assert arguments[0] in {"install", "wheel", "uninstall"}
        for word in arguments[1:]:
            ours = re.search(r"anomalib-defend(\[[a-z,]+\])", word)
            if ours:
                assert Requirement(f"anomalib-defend{ours[1]}").extras <= EXTRAS.keys(), word


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.document}: {command}")
def test_a_command_is_understood(command: Command, anomalib_parser, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    check = Checks(anomalib_parser, monkeypatch).of(command.words[0])
    if check is None:
        assert command.needs, f"{command.document}: no test knows {command.words[0]}; mark the block, or teach this one"
    else:
        named = command.inline and not any(word.startswith("-") for word in command.words)  # no more than its name
        check([*command.words[1:], *(["--help"] if named and check.__name__ == "ours" else [])])


def test_the_documents_have_commands() -> None:
    assert {command.document for command in command_lines()} >= {
        "README.md", "docs/index.md", "docs/your_images.md", "docs/reproduce.md", "docs/benchmarks.md",
        "src/anomalib_defend/models/defend/README.md",
    }  # fmt: skip


def test_blocks_say_what_they_are() -> None:
    """A block without a language would be a command that no test sees."""
    for block in blocks():
        assert block.language in LANGUAGES, f"{block.document}: {block.code}"
        assert block.needs <= NEEDS, f"{block.document}: {block.needs}"
        if block.language == "text":
            assert not re.match(r"\$ |(anomalib|python|pip|make) ", block.code), f"{block.document}: {block.code}"


def test_marks_stand_before_blocks() -> None:
    marked = Counter(block.document for block in blocks() if block.needs)
    for document in DOCUMENTS:
        marks = document.read_text(encoding="utf-8").count("<!-- needs")
        assert marks == marked[name(document)], f"{name(document)}: a mark belongs to the line before a block"


@pytest.mark.parametrize(
    "line",
    [
        "anomalib train --model Defnd", "anomalib train --model Defend --model.backbon x", "anomalib trian",
        "anomalib-defend reprot x", "anomalib-defend benchmark run vco", "python -m measurements.speed --quik",
        "python -m measurements.sped", "python no.py", "make quikstart", "make test PYTHN=x", "pytest tests/nothing",
        "pip install anomalib-defend[opnvino]", "anomalib-defend benchmark run voc --set vco=x",
    ],
)  # fmt: skip
def test_a_wrong_command_is_noticed(line, anomalib_parser, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = line.split()
    with pytest.raises((SystemExit, AssertionError, ValueError)):
        Checks(anomalib_parser, monkeypatch).of(program)(arguments)
