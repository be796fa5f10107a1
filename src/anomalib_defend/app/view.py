"""What is shown of judged images at some threshold: sentence, table and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomalib_defend.decision.command import describe
from anomalib_defend.files.names import to_text
from anomalib_defend.files.usable import READ_ERRORS
from anomalib_defend.visualization.picture import Finding, draw_picture
from anomalib_defend.visualization.visualizer import read_reduced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from anomalib_defend.decision.calibration import Calibration

    from .judging import Judged

HEAD = ("image", "verdict", "score", "p-value", "remark")
SIDE = 256  # pixels of a picture's panel
GONE = "no picture any more: dropped images are kept for an hour, drop it again"


@dataclass(frozen=True)
class View:
    """Texts, and pictures with the names of their images."""

    sentence: str
    promise: str
    table: list[list[str]]
    pictures: list[tuple[Image.Image, str]]


def view(judged: Sequence[Judged], calibration: Calibration, map_note: str = "") -> View:
    """What is shown, the most novel images first.

    Args:
        judged: Images, in any order.
        calibration: With the threshold to apply.
        map_note: What the model's map shows, where it is not what the score says.
    """
    order = sorted(judged, key=lambda one: (bool(one.error), -one.raw))
    scored = sum(not one.error for one in order)
    table, pictures, novel = [], [], 0
    for one in order:
        name = to_text(one.path.name)
        if one.error:
            table.append([name, "", "", "", f"cannot be scored: {to_text(one.error)}"])
            continue
        finding = _finding(one, calibration, map_note)
        novel += bool(finding.novel)
        verdict = "NOVEL" if finding.novel else "normal"
        picture = _picture(one, finding)
        table.append([name, verdict, f"{finding.score:.4f}", f"{one.p_value:.3g}", "" if picture else GONE])
        if picture is not None:
            pictures.append((picture, f"{name}: {verdict}"))
    sentence = (
        f"{novel} of {scored} images {'is' if novel == 1 else 'are'} called novel." if scored else "No image yet."
    )
    if len(order) > scored:
        sentence += f" {len(order) - scored} could not be scored: see the table."
    return View(sentence, describe(calibration), table, pictures)


def _picture(one: Judged, finding: Finding) -> Image.Image | None:
    """None where the image is there no more: dropped files are kept for some time alone."""
    try:
        image, size = read_reduced(str(one.path), SIDE)
    except READ_ERRORS:
        return None
    return draw_picture(image, finding, SIDE, size)


def _finding(one: Judged, calibration: Calibration, map_note: str) -> Finding:
    """As a run's pictures have it, at the threshold of ``calibration``."""
    image, pixel = calibration.image, calibration.pixel
    scaled = calibration.normalized
    score = float(image.scaled(one.raw)) if scaled else one.raw
    threshold = 1 - calibration.sensitivity if scaled else calibration.label_threshold
    finding = Finding(score, threshold, score > threshold, one.p_value, map_note=map_note)
    if one.heat is not None:
        finding.set_heat(*((one.heat, None) if pixel is None else (pixel.scaled(one.heat), 0.5)))
        finding.above = None if pixel is None else one.heat > pixel.threshold
    return finding
