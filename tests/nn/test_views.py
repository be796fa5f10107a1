"""Views lie inside the image, show what is there, and their distances are drawn where they lie."""

from itertools import permutations
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resize

from anomalib_defend.nn.views import LAYOUTS, PART, WHOLE, cut, distance_map, layouts, needed_size, pixels

SIDES = st.integers(1, 3000)
BOXES = LAYOUTS["whole+centre+corners"]
_, CENTRE, *CORNERS = BOXES


@given(height=SIDES, width=SIDES)
def test_views_are_inside_the_image(height, width):
    for box in BOXES:
        left, top, right, bottom = pixels(box, (height, width))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    assert pixels(WHOLE, (height, width)) == (0, 0, width, height)
    corners = [pixels(box, (height, width)) for box in CORNERS]
    assert min(left for left, *_ in corners) == min(top for _, top, *_ in corners) == 0
    assert (max(box[2] for box in corners), max(box[3] for box in corners)) == (width, height)
    sizes = {(right - left, bottom - top) for left, top, right, bottom in [*corners, pixels(CENTRE, (height, width))]}
    assert sizes == {(max(1, round(PART * width)), max(1, round(PART * height)))}  # the encoder sees equal scales


def test_layouts_begin_with_the_whole_image():
    assert all(boxes[0] == WHOLE for boxes in LAYOUTS.values())
    assert LAYOUTS["whole"] == (WHOLE,)
    assert [len(boxes) for boxes in LAYOUTS.values()] == [1, 2, 5, 6]


def test_parts_of_another_size_by_hand():
    found = layouts(0.5)
    assert found.keys() == LAYOUTS.keys()
    assert found["whole+centre"] == (WHOLE, (0.25, 0.25, 0.75, 0.75))
    corners = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0))
    assert found["whole+corners"] == (WHOLE, *corners)


@given(height=st.integers(16, 1000), width=st.integers(16, 1000))
def test_no_view_is_enlarged_and_none_is_much_larger_than_needed(height, width):
    assert needed_size((height, width), [WHOLE]) == (height, width)
    needed = needed_size((height, width), BOXES)
    for box in BOXES[1:]:
        left, top, right, bottom = pixels(box, needed)
        assert height <= bottom - top <= height + 1
        assert width <= right - left <= width + 1


def test_the_sizes_that_are_used_most_need_no_resizing_of_parts():
    for size, needed in {224: 374, 260: 434, 336: 560, 448: 747}.items():
        assert needed_size((size, size), BOXES) == (needed, needed)
        images = torch.rand(1, 3, needed, needed)
        left, top, right, bottom = pixels(CENTRE, (needed, needed))
        assert torch.equal(cut(images, CENTRE, (size, size)), images[..., top:bottom, left:right])


@given(height=st.integers(2, 90), width=st.integers(2, 90), size=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_a_view_is_the_resized_part(height, width, size):
    """In the engine and, by other means, in exports.

    Not to one column, where torch 2.14 repeats the first row: resize(torch.rand(1, 3, 2, 2), [3, 1]).
    """
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    for box in BOXES:
        left, top, right, bottom = pixels(box, (height, width))
        expected = resize(images[..., top:bottom, left:right], list(size), antialias=True)
        for exported in (False, True):
            with mock.patch("torch.compiler.is_compiling", return_value=exported):
                torch.testing.assert_close(cut(images, box, size), expected, rtol=0, atol=1e-5)


def test_a_map_by_hand():
    distances = torch.tensor([[3.0, 1.0, 2.0]])
    left, middle = (0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 0.5)
    heat = distance_map(distances, [WHOLE, left, middle], (2, 4))
    assert heat.tolist() == [[[[1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 3.0]]]]


@given(st.lists(st.floats(0, 10, width=32), min_size=6, max_size=6), st.integers(1, 50), st.integers(1, 50))
def test_a_maps_smallest_value_is_the_smallest_distance(values, height, width):
    distances = torch.tensor([values])
    heat = distance_map(distances, BOXES, (height, width))
    assert heat.shape == (1, 1, height, width)
    assert heat.min() == distances.min()
    assert heat.max() <= distances[0, 0]  # nowhere above the whole image's
    for index, box in enumerate(BOXES):
        left, top, right, bottom = pixels(box, (height, width))
        assert heat[..., top:bottom, left:right].max() <= distances[0, index]


@pytest.mark.parametrize("order", list(permutations(range(6)))[::97])
def test_the_order_of_views_makes_no_difference_to_a_map(order):
    distances = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    shuffled = distance_map(distances[:, list(order)], [BOXES[index] for index in order], (12, 17))
    assert torch.equal(shuffled, distance_map(distances, BOXES, (12, 17)))
