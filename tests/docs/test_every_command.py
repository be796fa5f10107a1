"""Every command of the documents is run by a test, or marked: it needs a GPU, a download or several machines."""

import pytest
from run_by import RUN_BY, begins, is_called, run_by
from stories import STORIES, is_followed

from documents import NEEDS, ROOT, command_lines

WAYS_OUT = """no test runs this command. Either
- name a test that does in RUN_BY of tests/docs/run_by.py; or
- let a story of tests/docs/test_stories.py follow it (`anomalib` commands in a page's block are followed); or
- mark it, if no miniature will do: <!-- needs: download --> or <!-- needs: gpu --> in the line before its block, and
  for a mention between backquotes or in a YAML file's comment its mark in RUN_BY."""


@pytest.mark.parametrize("command", command_lines(), ids=lambda command: f"{command.document}: {command}")
def test_a_command_is_run_or_marked(command) -> None:
    runs = run_by(command)
    assert command.needs or is_followed(command) or runs, f"{command.document}: {command}: {WAYS_OUT}"
    in_a_block = not command.inline and command.document.endswith(".md")
    if runs in NEEDS and in_a_block and not is_followed(command):
        assert runs in command.needs, f"{command.document}: {command}: mark its block <!-- needs: {runs} -->"


@pytest.mark.parametrize("key", RUN_BY)
def test_what_the_table_names_runs_the_command(key) -> None:
    if RUN_BY[key] not in NEEDS:
        assert is_called(key, (ROOT / RUN_BY[key]).read_text()), f"{RUN_BY[key]} does not run {key!r}"


@pytest.mark.parametrize("key", RUN_BY)
def test_the_table_holds_no_command_of_the_past(key) -> None:
    assert any(begins(command, key) for command in command_lines())


def test_pages_are_followed() -> None:
    readmes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/anomalib_defend/models").glob("*/README.md")}
    assert readmes | {"README.md", "docs/data.md", "docs/which_method.md", "configs/quickstart.yaml"} <= STORIES


@pytest.mark.parametrize(
    ("key", "text", "called"),
    [
        ("python -m measurements.views", "from measurements import views", True),
        ("python -m measurements.reliability.soak", "from measurements.reliability.soak import soak", True),
        ("python -m measurements.speed", "from measurements.speediness import x", False),
        ("anomalib-defend score", 'main(["score", "x"])', True),
        ("anomalib-defend score", "the score of an image", False),
        ("make test", "step make test", True),
        ("make docs", "no such target", False),
    ],
)
def test_a_call_is_seen(key, text, called) -> None:
    assert is_called(key, text) == called
