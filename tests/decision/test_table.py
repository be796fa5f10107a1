"""The table of results: what a spreadsheet, pandas and a person read."""

import csv

import pandas as pd
import pytest
import torch

from anomalib_defend.decision.table import (
    COLUMNS,
    Row,
    append,
    append_chosen,
    cells,
    read_table,
    to_box,
    write_header,
)
from anomalib_defend.files.names import to_text

ISSUE = "path, score, label, raw_score, p_value, threshold, true_label, categories, box, picture, error"


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "predictions.csv"
    write_header(path)
    return path


def test_columns_and_empty_cells(table) -> None:
    assert list(COLUMNS) == ISSUE.split(", ")
    append(table, [Row("a.png", 0.75, True, 1.5, 0.01, 1.25, False), Row("b.png", error="the file is empty")])
    first, second = read(table)
    assert list(first.values()) == ["a.png", "0.75", "novel", "1.5", "0.01", "1.25", "normal", "", "", "", ""]
    assert {name: value for name, value in second.items() if value} == {"path": "b.png", "error": "the file is empty"}
    assert pd.read_csv(table).score.tolist()[0] == 0.75


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_run_by_a_spreadsheet(table, text) -> None:
    append(table, [Row(text, 0.1, categories=text, picture=text, error=text)])
    (row,) = read(table)
    name = to_text(text)
    assert row["path"] == row["picture"] == (f"./{name}" if name == text else name)  # still the same file
    assert row["categories"] == row["error"] == f"'{text}"
    assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r")) for value in row.values())


def test_a_box(table) -> None:
    append(table, [Row("a", box=to_box(torch.tensor([1.0, 2.5, 30, 400]))), Row("b", box=to_box([0, 0, 0, 0]))])
    assert [row["box"] for row in read(table)] == ["1 2.5 30 400", ""]


def test_a_negative_score_stays_a_number(table) -> None:
    append(table, [Row("a", raw_score=-3.25)])
    assert pd.read_csv(table).raw_score.tolist() == [-3.25]


def test_scores_next_to_the_threshold_are_told_apart() -> None:
    above = 0.5 + 2**-24  # the next number in float32
    assert float(cells(Row("a", above))[1]) > 0.5


def test_names_that_are_no_utf8(table) -> None:
    append(table, [Row(b"St\xfcck.png".decode("utf-8", "surrogateescape")), Row("Stück.png"), Row('a,"b"\n.png')])
    assert [row["path"] for row in read(table)] == ["St\\xfcck.png", "Stück.png", 'a,"b"\\x0a.png']


def test_the_most_novel_first_and_a_selection(tmp_path) -> None:
    path = tmp_path / "t.csv"
    write_header(path, selected=True)
    rows = [Row("low", 0.1, raw_score=1.0, p_value=0.9), Row("broken", error="x")]
    rows += [
        Row("high", 0.9, raw_score=9.0, p_value=0.01),
        Row("nan", float("nan"), raw_score=float("nan"), p_value=0.01),
    ]
    append_chosen(path, rows, novel_first=True, target_fdr=0.1)
    found = read(path)
    assert [row["path"] for row in found] == ["nan", "high", "low", "broken"]
    assert [row["selected"] for row in found] == ["yes", "yes", "no", "no"]


def test_an_earlier_table_is_left_alone(table) -> None:
    append(table, [Row("a.png", 0.5)])
    before = table.read_text()
    assert not write_header(table)
    assert table.read_text() == before


def test_a_table_is_read_as_it_was_written(table) -> None:
    rows = [
        Row("a.png", 0.75, True, 1.5, 0.01, 1.25, False, "dog; cat", (1, 2, 3, 4), "images/a.png"),
        Row("b.png", categories="=1", error="the file is empty"),
    ]
    append(table, rows)
    assert read_table(table) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [("image_path,pred_score\n", "no column path, score"), ("path,score,label\na,x,normal\n", "line 2"),
     ("path,score,label\na,1,odd\n", "line 2")],
)  # fmt: skip
def test_what_is_no_table_is_named(tmp_path, content, message) -> None:
    path = tmp_path / "test.csv"
    with pytest.raises(FileNotFoundError, match=r"test\.csv does not exist"):
        read_table(path)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_what_is_no_text_is_no_table(tmp_path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"PAR1\x15\x04\xff\xfe\0\n")
    with pytest.raises(ValueError, match=r"scores\.parquet is no table of results.* the \.csv of `anomalib-defend"):
        read_table(path)
