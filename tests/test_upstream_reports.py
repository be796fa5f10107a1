"""The programs of docs/upstream.md print what is said: a fault that was mended upstream shows here."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "upstream.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_report_shows_its_fault(number, capsys, tmp_path, monkeypatch):
    if "openvino" in PROGRAMS[number]:
        pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAMS[number], f"program {number} of {DOCUMENT.name}", "exec"), {"__name__": "program"})  # noqa: S102
    assert capsys.readouterr().out.split("\n")[:-1] == re.findall(r"# prints: (.*)", PROGRAMS[number])
