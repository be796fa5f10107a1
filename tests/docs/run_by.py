"""Which test runs a command of the documents that no story follows."""

import re
from pathlib import Path

from documents import Command

DOWNLOAD = "download"
RUN_BY = {  # the first words of commands, without an interpreter's path -> what runs them, or the mark of their block
    "make quickstart": "tests/docs/test_quickstart.py",
    "make test": ".ci/run",
    "make test-lowest": ".ci/run",
    "make audit": ".ci/run",
    "make lint": "Makefile",  # by `make test`
    "make docs": "tests/docs/test_site.py",
    "make help": "tests/docs/test_quickstart.py",
    "pytest": ".ci/run",
    "pip install": "Makefile",
    "pip wheel": "tests/test_wheel.py",
    "anomalib train --model Padim --data configs/data": "tests/test_cli.py",  # each of the folder
    "anomalib train --model.help": "tests/test_console.py",
    "anomalib train --data.help": "tests/docs/test_command_lines.py",
    "anomalib-defend --help": "tests/commands/test_commands.py",
    "anomalib-defend --version": "tests/commands/test_commands.py",
    "anomalib-defend app": "tests/app/test_judging.py",
    "anomalib-defend example": "tests/commands/test_commands.py",
    "anomalib-defend report": "tests/reporting/test_page.py",
    "anomalib-defend score": "tests/scoring/test_tables.py",
    "anomalib-defend threshold": "tests/docs/test_stories.py",
    "anomalib-defend benchmark": "tests/benchmark/test_run.py",
    "anomalib-defend benchmark report": "tests/benchmark/test_report.py",
    "anomalib-defend benchmark run defend_looks": DOWNLOAD,
    "anomalib-defend benchmark run defend_rate": DOWNLOAD,
    "anomalib-defend benchmark run objects": DOWNLOAD,
    "anomalib-defend benchmark run photographs": DOWNLOAD,
    "anomalib-defend benchmark run reduced": DOWNLOAD,
    "anomalib-defend benchmark run reduced_32": DOWNLOAD,
    "anomalib-defend benchmark run reduced_peers": DOWNLOAD,
    "python -c": "tests/docs/test_command_lines.py",
    "python -m measurements.arithmetics": DOWNLOAD,
    "python -m measurements.attention_block": DOWNLOAD,
    "python -m measurements.billion": "tests/measurements/test_programs.py",
    "python -m measurements.cluster": "tests/measurements/test_programs.py",
    "python -m measurements.coco_reading": "tests/data/test_coco.py",
    "python -m measurements.deployment": "tests/measurements/test_programs.py",
    "python -m measurements.export": "tests/example/test_defend_on_digits.py",
    "python -m measurements.layouts": DOWNLOAD,
    "python -m measurements.nodes": "tests/measurements/test_programs.py",
    "python -m measurements.picture_examples": "tests/measurements/test_programs.py",
    "python -m measurements.pictures": "tests/visualization/test_picture_times.py",
    "python -m measurements.precision": "tests/measurements/test_programs.py",
    "python -m measurements.prototypes": DOWNLOAD,
    "python -m measurements.reliability.kill": "tests/measurements/test_kill.py",
    "python -m measurements.reliability.memory": "tests/measurements/test_memory.py",
    "python -m measurements.reliability.soak": "tests/measurements/test_memory.py",
    "python -m measurements.reliability.thresholds": "tests/measurements/test_programs.py",
    "python -m measurements.reproduction": "tests/measurements/test_programs.py",
    "python -m measurements.batches": "tests/measurements/test_programs.py",
    "python -m measurements.scoring": "tests/measurements/test_programs.py",
    "python -m measurements.scoring --voc": DOWNLOAD,
    "python -m measurements.screenshots": "tests/measurements/test_programs.py",
    "python -m measurements.side_by_side": DOWNLOAD,
    "python -m measurements.speed": "tests/measurements/test_speed.py",
    "python -m measurements.thresholds": DOWNLOAD,
    "python -m measurements.views": "tests/measurements/test_cost_of_views.py",
}


def run_by(command: Command) -> str | None:
    """The value of the longest beginning in the table, or None."""
    found = [key for key in RUN_BY if begins(command, key)]
    return RUN_BY[max(found, key=len)] if found else None


def begins(command: Command, key: str) -> bool:
    """Whether a command begins with the words of a key, of which the last may be the folder of its last word."""
    program, *arguments = command.words
    line = " ".join([Path(program).name, *arguments])
    return line == key or line.startswith((f"{key} ", f"{key}/"))


def is_called(key: str, text: str) -> bool:
    """Whether a test's text has the command: as a shell's line, as a list of arguments, or as a module's name."""
    *program, last = key.split()
    if program == ["python", "-m"]:
        package, _, module = last.rpartition(".")
        return re.search(rf"\b{package}(\.| import .*\b){module}\b", text) is not None
    if program in ([], ["make"], ["pip"]):
        return re.search(rf"\b{last}\b", text) is not None
    return any(f'"{word}"' in text for word in (last, re.split("[/.]", last)[-1]))
