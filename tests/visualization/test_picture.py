"""What a picture contains, read back from the calls that draw it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from anomalib_defend.visualization import captions, picture
from anomalib_defend.visualization.picture import Finding, draw_picture, outlines

NOTE = "The map shows the distance of student and teacher, not the score."
SIZES = [(32, 32), (32, 2000), (2000, 32), (48, 64), (500, 375), (375, 500), (2000, 1500), (1500, 2000), (2000, 2000)]


@pytest.fixture
def words(monkeypatch):
    """The texts that are drawn; each, and everything that is pasted, lies within its ground."""
    texts = []
    draw_text, paste = ImageDraw.ImageDraw.text, Image.Image.paste

    def record_text(self, xy, text, fill=None, font=None):
        left, top, right, bottom = self.textbbox(xy, text, font)
        assert left >= 0
        assert top >= 0
        assert right <= self.im.size[0]
        assert bottom <= self.im.size[1]
        texts.append(text)
        return draw_text(self, xy, text, fill, font)

    def record_paste(self, im, box=None, mask=None):
        if box is not None:
            assert min(box) >= picture.MARGIN
            assert box[0] + im.width <= self.width - picture.MARGIN
            assert box[1] + im.height <= self.height - picture.MARGIN
        return paste(self, im, box, mask)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record_text)
    monkeypatch.setattr(Image.Image, "paste", record_paste)
    for row in (picture._scale, picture._verdict, picture._paragraph):
        row.cache_clear()
    return texts


def make_finding(**changes):
    heat = np.linspace(0, 255, 14 * 14).reshape(14, 14).astype(np.uint8)
    defaults = {"score": 0.7312, "threshold": 0.5, "novel": True, "p_value": 0.0123, "heat": heat, "above": heat > 127}
    return Finding(**{**defaults, "map_threshold": 0.5, "map_note": NOTE, **changes})


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_said_and_nothing_is_cut_off(size, words):
    finding = make_finding(box=(0, 0, size[0], size[1]))
    drawn = draw_picture(Image.new("RGB", size), finding, 256)
    said = " ".join(words)
    assert {"0", "0.5", "1"} <= set(words)
    for sentence in (
        "NOVEL", "score 0.731, threshold 0.500, p-value 0.0123", captions.OUTLINE_LEGEND, NOTE,
        "Map: dark is normal, bright is novel; 0.5 is the map's threshold.", captions.NOVEL_BOX_LEGEND,
    ):  # fmt: skip
        assert sentence in said
    margin = np.asarray(drawn).copy()
    margin[picture.MARGIN : -picture.MARGIN, picture.MARGIN : -picture.MARGIN] = 255
    assert np.all(margin == 255)


def test_the_box_is_of_the_normal_object_where_it_was_found():
    box = (0, 0, 10, 10)
    assert captions.BOX_LEGEND in make_finding(box=box, novel=False).caption()
    assert captions.NOVEL_BOX_LEGEND in make_finding(box=box, novel=True).caption()


@pytest.mark.parametrize("size", SIZES)
def test_panels_keep_the_shape_and_about_the_area(size):
    width, height = picture.panel_size(size, 256)
    assert max(width, height) <= 3 * 256
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
    if max(size) < 9 * min(size):
        assert width * height == pytest.approx(256**2, rel=0.01)


def test_image_and_map_stand_side_by_side():
    drawn = np.asarray(draw_picture(Image.new("RGB", (64, 64), (200, 30, 30)), make_finding(above=None), 64))
    left = drawn[picture.MARGIN : picture.MARGIN + 64, picture.MARGIN : picture.MARGIN + 64]
    right = drawn[picture.MARGIN : picture.MARGIN + 64, picture.MARGIN + 64 + picture.GAP :][:, :64]
    assert np.all(left == (200, 30, 30))
    assert right[0].mean() < right[-1].mean()  # the map rises from top to bottom


def test_without_a_map_there_is_the_image_alone(words):
    drawn = draw_picture(Image.new("RGB", (256, 256)), Finding(0.1, 0.5, novel=False, map_note=NOTE), 256)
    assert words == ["normal", "score 0.100, threshold 0.500"]
    assert drawn.width == 256 + 2 * picture.MARGIN


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.25, 0.5, None), "score 0.250, threshold 0.500"),
        ((0.5003, 0.5, None), "score 0.5003, threshold 0.5000"),
        ((0.5, 0.5, 0.5), "score 0.500, threshold 0.500, p-value 0.5"),
        ((0.5 + 1e-9, 0.5, 1e-5), "score 0.500000, threshold 0.500000, p-value 1e-05"),
        ((12.5, None, float("nan")), "score 12.500, no threshold"),
        ((12.5, float("nan"), None), "score 12.500"),
        ((None, 0.5, None), "no score"),
    ],
)
def test_numbers(arguments, words):
    assert captions.numbers(*arguments) == words


def test_no_verdict_looks_like_another():
    rows = [np.asarray(picture._verdict(novel, 256)).mean() for novel in (None, False, True)]
    assert rows[2] < 100
    assert min(rows[:2]) > 200
    assert len(set(captions.VERDICTS.values())) == 3


def test_what_is_clipped_is_said(words):
    draw_picture(Image.new("RGB", (64, 64)), make_finding(clipped=True), 256)
    assert captions.CLIPPED_LEGEND in " ".join(words)


@given(st.text("ab c", max_size=60), st.integers(1, 30))
def test_lines_are_no_wider_than_allowed_and_lose_nothing(text, width):
    lines = captions.wrapped(text, width, len)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if all(len(word) <= width for word in text.split()):
        assert " ".join(lines).split() == text.split()


def test_long_words_of_a_note_are_broken(words):
    draw_picture(Image.new("RGB", (32, 32)), make_finding(map_note="M" * 200), 32)
    assert "M" * 200 in "".join(words)


@pytest.mark.parametrize("box", [(10, 20, 30, 40), (-5, -5, 500, 500), (63, 63, 64, 64), (70, 70, 90, 90)])
def test_the_box_is_drawn_within_the_image(box):
    image = Image.new("RGB", (64, 64), (90, 90, 90))
    drawn = np.asarray(draw_picture(image, Finding(0.1, 0.5, False, box=box), 128))
    panel = drawn[picture.MARGIN : picture.MARGIN + 128, picture.MARGIN : picture.MARGIN + 128]
    rows, columns = np.nonzero((panel != 90).any(axis=2))
    first = [min(max(2 * edge, 0), 127) for edge in box[:2]]
    last = [min(max(2 * edge - 1, start), 127) for edge, start in zip(box[2:], first, strict=True)]
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (*first, *last)


def test_a_box_counts_in_pixels_of_the_file():
    reduced = Image.new("RGB", (250, 250), (90, 90, 90))
    one = draw_picture(reduced, Finding(box=(100, 100, 400, 500)), 128, (1000, 1000))
    other = draw_picture(reduced, Finding(box=(25, 25, 100, 125)), 128)
    assert one == other


def test_outlines_are_on_both_sides_of_the_edge():
    mask = np.zeros((6, 6), bool)
    mask[2:5, 2:5] = True
    inner, outer = outlines(mask)
    assert inner.sum() == 8
    assert not inner[3, 3]
    assert outer.sum() == 12
    assert not (outer & mask).any()
