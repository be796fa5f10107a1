"""The table and the plot of views beside larger inputs, of small models."""

import re
import sys

import pytest

from comparisons import make_scores, write_results
from encoders import MINIATURE
from measurements import views

SMALL = {"backbone": MINIATURE, "image_size": 32}
MODELS = {
    "DN2": {"class_path": "DN2", "init_args": {**SMALL}},
    "whole+centre": {"class_path": "ObjectPrototypes", "init_args": {**SMALL, "views": "whole+centre"}},
    "Defend": {"class_path": "Defend", "init_args": {**SMALL}},
}


@pytest.mark.slow  # three exports
def test_the_program(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    shifts = {"DN2": 0.5, "whole+centre": 1.5, "Defend": 0.2}
    scores = {(model, "dog", 0): make_scores(0, shift) for model, shift in shifts.items()}
    write_results(tmp_path, scores, tuple(MODELS), ("dog",), (0,), settings=MODELS)
    arguments = [str(tmp_path), "--data", "VOC", "--repeats", "1", "--reference", "whole+centre"]
    arguments += ["--plot", str(tmp_path / "views.png")]
    monkeypatch.setattr(sys, "argv", ["views", *arguments])
    views.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names, _, *cells = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    dn2, centre, defend = (dict(zip(names, row, strict=True)) for row in cells)
    assert float(dn2["passes"]) == pytest.approx(1, rel=0.1)
    assert float(centre["passes"]) == pytest.approx(2, rel=0.1)
    assert float(defend["passes"]) == pytest.approx(2, rel=0.1)  # teacher and student
    assert dn2["difference"].startswith("-0.")
    assert dn2["best rival"] == "-"
    assert centre["best rival"] == "DN2"
    mean, low, high = (float(number) for number in re.findall(r"[+-][\d.]+", dn2["difference"]))
    mirrored = [float(number) for number in re.findall(r"[+-][\d.]+", centre["difference to it"])]
    assert mirrored == pytest.approx([-mean, -high, -low], abs=0.002)
    assert (tmp_path / "views.png").stat().st_size > 1000


def test_names_in_the_plot_cover_neither_each_other_nor_marks(tmp_path, monkeypatch):
    written = []
    place = views.name_marks
    monkeypatch.setattr(views, "name_marks", lambda axes, labels: written.append(axes) or place(axes, labels))
    spots = {
        "DN2 at 224": (40, 0.83),
        "whole at 336": (77, 0.877),
        "whole+centre": (76, 0.8765),
        "DN2 at 336": (75, 0.877),
    }
    rows = [
        {"model": name, "encoder": MINIATURE, "ms, in 8": milliseconds, "AUROC": auroc}
        for name, (milliseconds, auroc) in spots.items()
    ]
    views.plot(rows, "VOC", tmp_path / "plot.png")
    (axes,) = written
    boxes = [text.get_window_extent() for text in axes.texts]
    assert {text.get_text() for text in axes.texts} == set(spots)
    marks = axes.transData.transform(list(spots.values()))
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])
        assert not any(box.contains(*mark) for mark in marks)
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
