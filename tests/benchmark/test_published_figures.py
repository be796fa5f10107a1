"""The papers' own figures: complete, in agreement with themselves, and none without a word on how it was made."""

import re
from importlib.resources import files
from statistics import mean

import pytest
import yaml

from anomalib_defend import benchmark
from anomalib_defend.benchmark.papers import figures, notes

CONTENT = yaml.safe_load((files(benchmark) / "papers.yaml").read_text())
NOTES = CONTENT.pop("notes")
CATEGORIES = {  # of the tables that have them all
    "VOC uni-class": 20, "VOC leave-one-out": 20, "COCO uni-class": 80, "CIFAR-10 splits": 4,
    "CIFAR-10 DEFEND on and off": 10,
}  # fmt: skip
TABLES = [(table, method) for table, methods in CONTENT.items() for method in methods]


@pytest.mark.parametrize(("table", "method"), TABLES, ids=map("|".join, TABLES))
def test_a_mean_is_that_of_its_categories_or_a_note_says_so(table, method):
    rows = figures(table)[method]
    assert all(0 < value < 1 for value in rows.values())
    parts = [value for row, value in rows.items() if row != "mean"]
    if len(parts) <= 1:  # the mean alone, or one example
        assert "mean" in rows
        return
    assert len(parts) == CATEGORIES[table]
    if abs(mean(parts) - rows["mean"]) > 0.0011:  # both are rounded to 0.001
        told = [note for note in notes(table) if method in note.partition(": ")[0].split("; ")]
        assert any(re.search(rf"of {re.escape(method)} (is )?{100 * mean(parts):.1f}", note) for note in told)


@pytest.mark.parametrize("table", CONTENT)
def test_no_method_is_without_a_note(table):
    told = {method for note in notes(table) for method in note.partition(": ")[0].split("; ")}
    assert told == set(figures(table))


def test_notes_name_what_is_there():
    for note in NOTES:
        assert set(note) <= {"methods", "tables", "text"}
        for table in note.get("tables", []):
            assert set(note["methods"]) & set(CONTENT[table])
        assert set(note["methods"]) <= {method for methods in CONTENT.values() for method in methods}


def test_whatever_has_a_star_is_called_a_rerun():
    starred = {method for _, method in TABLES if method.endswith("*")}
    (note,) = [note for note in NOTES if "the star marks" in note["text"]]
    assert set(note["methods"]) == starred
