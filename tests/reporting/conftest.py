"""A finished test of 80 images with pictures, boxes and categories, and its page."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_defend.decision import Calibration, Level
from anomalib_defend.decision.table import Row, append, write_header
from anomalib_defend.reporting.page import write_report
from anomalib_defend.visualization.picture import Finding, draw_picture
from anomalib_defend.visualization.visualizer import save

VALIDATION = 99
EVIL = '<img onerror="document.title=1" src=x>'


def calibration() -> Calibration:
    scores = tuple(np.linspace(0, 1, VALIDATION).tolist())
    return Calibration(0.05, Level(threshold=scores[-5], scale=0.5, typical=0.5, normal_scores=scores))


def make_rows(count: int, seed: int = 0, labelled: bool = True) -> list[Row]:
    """Half of the images novel, with overlapping scores."""
    rng, known, level = np.random.default_rng(seed), calibration(), calibration().image
    rows = []
    for index in range(count):
        novel = index % 2 == 1
        raw = float(np.float32(rng.normal(1.1 if novel else 0.5, 0.35)))
        score = float(level.scaled(raw))
        p_value = (1 + sum(value >= raw for value in level.normal_scores)) / (VALIDATION + 1)
        names = (
            ["dog", *(["person"] if index % 4 == 0 else [])] if not novel else ["cat", "traffic light"][: 1 + index % 3]
        )
        rows.append(
            Row(
                path=f"/data/{'novel' if novel else 'normal'}/{index}.png",
                score=score,
                label=score > 0.5,
                raw_score=raw,
                p_value=p_value,
                threshold=known.label_threshold,
                true_label=novel if labelled else None,
                categories="; ".join(names) if labelled else "",
            )
        )
    return rows


def draw(path: Path, seed: int, side: int = 96, heat: bool = True) -> None:
    """A picture as the visualizer draws them."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    values = np.linspace(0, 255, 49).reshape(7, 7).astype(np.uint8)
    finding = Finding(0.4, 0.5, False, 0.2, values if heat else None, box=(10, 10, 60, 60))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(draw_picture(Image.fromarray(noise), finding, side), path)


def write_run(folder: Path, rows: list[Row], name: str = "test", **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    write_header(table)
    append(table, rows)
    described = {"format": 1, "calibration": calibration().content(), **content}
    table.with_suffix(".json").write_text(json.dumps(described))
    return table


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    return make_rows(80)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for index, row in enumerate(rows):
        row.picture = f"images/{index}.png"
        draw(folder / row.picture, index)
    rows[0].path, rows[0].categories, rows[0].box = f"/data/{EVIL}.png", f"dog; {EVIL}", (10, 10, 60, 60)
    write_run(
        folder,
        [*rows, Row("/data/broken.png", error="the file is empty")],
        command="anomalib test --model Defend --data SemanticFolder",
        model="Defend",
        arguments={"backbone": "deit_tiny_patch16_224"},
        data={"name": "SemanticFolder", "category": "dog", "setting": "uni_class",
              "splits": {"train": {"normal": 300}, "test": {"normal": 40, "novel": 40}}},
        seed=3,
        started="2026-01-02T03:04:05+00:00",
        seconds=12.5,
        versions={"anomalib": "2.7.0"},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def report(finished: Path):
    return write_report(finished)
