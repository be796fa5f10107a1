"""The notebook: its cells in a process that has imported everything, and, with the slow tests, as Jupyter runs it."""

import os
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from documents import ROOT
from forked import run

nbformat = pytest.importorskip("nbformat")

COMMAND = re.compile(r"^!anomalib-defend (\w+) \{(\w+)\}$", re.MULTILINE)
FILE = ROOT / "docs" / "notebooks" / "folder_to_report.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def check(folder: Path) -> None:
    """A table of all new images, and a page of it."""
    (table,) = (folder / "results").rglob("predictions.csv")
    assert len(pd.read_csv(table)) == len(list((folder / "new_images").rglob("*.*")))
    assert "<html" in (table.parent / "report.html").read_text(encoding="utf-8")


def test_it_holds_no_outputs_and_is_small(notebook):
    nbformat.validate(notebook)
    assert FILE.stat().st_size < 20_000
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def run_cells(cells: list[str]) -> None:
    from anomalib_defend.commands import main

    names: dict[str, object] = {"main": main}
    for cell in cells:
        code = COMMAND.sub(r"assert main(['\1', str(\2)]) == 0", cell)
        exec(compile(code, FILE.name, "exec"), names)  # noqa: S102


@pytest.mark.slow
def test_its_cells_with_less_training(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    constants = "MAX_TRAIN_IMAGES, DISTILL_EPOCHS = 200, 8"
    short = [cell.replace(constants, "MAX_TRAIN_IMAGES, DISTILL_EPOCHS = 24, 1") for cell in cells]
    assert short != cells
    run(run_cells, short)
    check(tmp_path)


@pytest.mark.slow
def test_as_jupyter_runs_it(notebook, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "anomalib-defend"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m anomalib_defend \"$@\"\n")
    script.chmod(0o755)
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", source)
    client.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(tmp_path)
    (auroc,) = re.findall(r"image_AUROC\D+([\d.]+)", str(notebook.cells))[:1]
    assert float(auroc) > 0.6  # it learns something
