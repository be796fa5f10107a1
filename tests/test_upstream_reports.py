"""The programs of docs/upstream.md print what is said: a fault that was mended upstream shows here."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomalib_defend.benchmark.machine import describe

DOCUMENT = Path(__file__).parents[1] / "docs" / "upstream.md"
# a fault's paragraph begins with its name, and ends where the next one or the next package begins
REPORT = re.compile(r"^\*\*(.*?)\.\*\*(.*?)(?=^\*\*|^## |\Z)", re.DOTALL | re.MULTILINE)
REPORTS = dict(REPORT.findall(DOCUMENT.read_text(encoding="utf-8")))
PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)
NAMES = (
    "`create_versioned_dir` cannot replace a folder",
    "`generate_output_filename` gives two images one name",
    "Exported models may have four outputs and no more",
    "`configure_logger` adds a second handler",
    "`--seed_everything` has no effect",
    "`--optimizer` is ignored by `train`",
    "`train --ckpt_path X` tests X",
    "A run's own `config.yaml` cannot be used, and is lost",
    "Paths that are not ASCII are refused",
    "A broken image ends a prediction, and is not named",
    "Images of 16 bits are clipped to white",
    "The default post-processor clamps before the metrics",
    "`F1Score` is 0 for normal images alone",
    "`MemoryBankMixin` fits once",
    "`anomalib benchmark` hides what went wrong",
    "64-bit integers are computed in 32 bits by the CPU plugin",
    "The cache of compiled models does not tell precision hints apart",
    "Weights of 8 bits give wrong scores in bf16 with several streams",
    "Telemetry is sent without consent",
    "`BinaryAUROC` depends on the batches",
    "`fit` trains a model in evaluation mode",
    "The last epochs may be on no disk",
    "A share of less than one validation batch is refused late",
)
WITHOUT = (
    "Several `openvino.Core` may end the process",
    "Models that onnxscript before 0.7.1 has written crash the process",
)


def test_every_report_is_there_with_a_program_or_the_reason_why_there_is_none():
    assert sorted(REPORTS) == sorted(NAMES + WITHOUT)
    assert [name for name in REPORTS if not PROGRAM.search(REPORTS[name])] == list(WITHOUT)
    assert all("*No program:*" in REPORTS[name] for name in WITHOUT)


@pytest.fixture
def handlers() -> Iterator[None]:
    """What a program adds to the loggers is gone after it; it would print among the lines of the next one."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, own in zip(loggers, before, strict=True):
        logger.handlers[:] = own


@pytest.mark.slow
@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("name", NAMES)
def test_a_report_shows_its_fault(name, capsys, tmp_path, monkeypatch):
    (program,) = PROGRAM.findall(REPORTS[name])
    if "openvino" in program:
        pytest.importorskip("openvino")
    if "bf16 with" in name and "amx_bf16" not in describe(1):
        pytest.skip("the processor has no AMX")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, f"{DOCUMENT.name}: {name}", "exec"), {"__name__": "program"})  # noqa: S102
    expected = re.findall(r"# prints: (.*)", program)
    assert expected
    assert capsys.readouterr().out.split("\n")[:-1] == expected
