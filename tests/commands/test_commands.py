"""``anomalib-defend``: light until a command runs, and foreseen errors are sentences."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm

import anomalib_defend.models  # noqa: F401 - registers the example's encoder
from anomalib_defend import commands, console
from anomalib_defend._version import __version__
from anomalib_defend.commands import COMMANDS, example, main

HEAVY = {"torch", "anomalib", "lightning", "timm", "numpy", "pandas", "sklearn", "matplotlib", "openvino"}
HELPS = [[], *([name] for name in COMMANDS), ["benchmark", "run"], ["benchmark", "report"]]


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_imports_nothing_heavy_and_opens_no_socket(command):
    code = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
from anomalib_defend.commands import main
try:
    main({[*command, "--help"]})
except SystemExit as end:
    print(json.dumps([end.code, opened, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""
    status, opened, modules = json.loads(python(code).splitlines()[-1])
    assert status == 0
    assert opened == []
    assert not HEAVY & set(modules)


def test_help_takes_less_than_a_second():
    command = [sys.executable, "-m", "anomalib_defend", "--help"]
    subprocess.run(command, capture_output=True, check=True)  # compiles the files, as an installation does
    before = os.times()
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = os.times()  # CPU time: other processes do not count
    assert sum(after[2:4]) - sum(before[2:4]) < 1
    assert all(name in printed for name in COMMANDS)


def test_every_command_is_a_module_with_the_two_functions():
    files = {path.name for path in Path(commands.__file__).parent.glob("*.py")}
    assert files == {"__init__.py", *(f"{name}.py" for name in COMMANDS)}
    for name in COMMANDS:
        module = importlib.import_module(f"anomalib_defend.commands.{name}")
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "benchmark"), (["bench"], "benchmark"), (["benchmark"], "report"), (["example"], "root")],
)
def test_what_is_missing_or_unknown_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def raising(monkeypatch):
    """Have ``anomalib-defend example`` raise."""

    def install(error):
        def run(_options):
            raise error

        module = SimpleNamespace(add_arguments=example.add_arguments, run=run)
        monkeypatch.setattr(commands, "_module", lambda _name: module)

    return install


@pytest.mark.parametrize("error", [ValueError("a is 3"), FileNotFoundError("no file b"), ModuleNotFoundError("no c")])
def test_foreseen_errors_are_sentences(capsys, monkeypatch, raising, error):
    raising(error)
    assert main(["example", "--root", "x"]) == 1
    printed = capsys.readouterr().err
    assert printed.endswith(f"\nerror: {error}\n")  # the last line
    assert "Traceback" not in printed
    monkeypatch.setenv(console.TRACEBACK, "1")
    with pytest.raises(type(error)):
        main(["example", "--root", "x"])


def test_other_errors_are_not_hidden(raising):
    raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["example", "--root", "x"])


def test_example(tmp_path, capsys):
    assert main(["example", "--root", str(tmp_path), "--category", "four"]) == 0
    printed = capsys.readouterr().out
    assert "440 scenes (400 with 'four') to train on, 200 scenes (100 with 'four') to test on" in printed
    assert f"--data.root {tmp_path / 'VOC2012'} --data.category four" in printed
    assert timm.is_model(example.BACKBONE)
    assert f"--model.backbone {example.BACKBONE}" in printed


def test_plots_without_matplotlib_name_the_way_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "anomalib_defend.benchmark.plots", raising=False)
    assert main(["benchmark", "report", str(tmp_path), "--plots", str(tmp_path / "plots")]) == 1
    assert "--plots needs matplotlib: pip install 'anomalib-defend[benchmark]'" in capsys.readouterr().err
