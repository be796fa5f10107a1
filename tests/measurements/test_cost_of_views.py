"""The table and the plot of views beside larger inputs, of small models."""

import sys

import pytest

from comparisons import make_scores, write_results
from encoders import MINIATURE
from measurements import views

SMALL = {"backbone": MINIATURE, "image_size": 32}
MODELS = {
    "DN2": {"class_path": "DN2", "init_args": {**SMALL}},
    "whole+centre": {"class_path": "ObjectPrototypes", "init_args": {**SMALL, "views": "whole+centre"}},
}


@pytest.mark.slow  # two exports
def test_the_program(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    scores = {("DN2", "dog", 0): make_scores(0, 0.5), ("whole+centre", "dog", 0): make_scores(0, 1.5)}
    write_results(tmp_path, scores, tuple(MODELS), ("dog",), (0,), settings=MODELS)
    arguments = [str(tmp_path), "--data", "VOC", "--repeats", "1", "--reference", "whole+centre"]
    arguments += ["--plot", str(tmp_path / "views.png")]
    monkeypatch.setattr(sys, "argv", ["views", *arguments])
    views.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names, _, *cells = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    dn2, centre = (dict(zip(names, row, strict=True)) for row in cells)
    assert float(dn2["passes"]) == pytest.approx(1, rel=0.1)
    assert float(centre["passes"]) == pytest.approx(2, rel=0.1)
    assert dn2["difference"].startswith("-0.")
    assert dn2["best rival"] == "-"
    assert centre["best rival"] == "DN2"
    assert centre["difference to it"] == dn2["difference"].replace("-", "+", 1) or centre["difference to it"][0] == "+"
    assert (tmp_path / "views.png").stat().st_size > 1000
