"""Boxes, crops of images, and the targets that belong to them."""

import pytest
import torch
from extremes import numbers, seeds, sizes, tensors
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2.functional import resized_crop

from anomalib_defend.nn.crops import crop_images, crop_targets, sample_boxes

RATIO = (3 / 4, 4 / 3)
# of a lattice of 4 x 6 cells; three boxes for each of two images
BOXES = torch.tensor([[0, 0, 1, 1], [1, 2, 3, 4], [2, 0, 2, 5], [3, 5, 1, 1], [0, 0, 4, 6], [0, 1, 2, 2]])


@numbers
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted),
    seeds,
)
def test_boxes_lie_inside_the_lattice(grid, scale, ratio, seed):
    torch.manual_seed(seed)
    boxes = sample_boxes(100, grid, scale, ratio)
    assert boxes.shape == (100, 4)
    assert boxes.dtype == torch.long
    top, left, height, width = boxes.unbind(1)
    for start, extent, limit in ((top, height, grid[0]), (left, width, grid[1])):
        assert start.min() >= 0
        assert extent.min() >= 1
        assert (start + extent).max() <= limit


@numbers
@given(tensors(2, 1, st.integers(1, 12), st.integers(1, 12)), sizes, st.integers(1, 3), seeds)
def test_a_crop_invents_no_values(images, size, number, seed):
    torch.manual_seed(seed)
    boxes = sample_boxes(2 * number, tuple(images.shape[-2:]), (0.05, 1))
    crops = crop_images(images, boxes, size)
    assert crops.shape == (2 * number, 1, *size)
    assert crops.dtype == torch.float32
    for crop, image in zip(crops, images.float().repeat_interleave(number, dim=0), strict=True):
        slack = 1e-5 * image.abs().max()
        assert crop.min() >= image.min() - slack
        assert crop.max() <= image.max() + slack


@numbers
@given(sizes, sizes, st.integers(1, 3), seeds)
def test_targets_come_from_the_own_box_of_the_own_image_in_order(grid, size, number, seed):
    torch.manual_seed(seed)
    boxes = sample_boxes(2 * number, grid, (0.05, 1))
    cells = torch.stack(torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij"), dim=-1)
    labels = torch.stack([cells, cells])  # each cell says where it is
    targets = crop_targets(labels, boxes, size)
    assert targets.shape == (2 * number, *size, 2)
    for target, (top, left, height, width) in zip(targets, boxes.tolist(), strict=True):
        for values, start, extent in ((target[:, 0, 0], top, height), (target[0, :, 1], left, width)):
            assert values.min() >= start
            assert values.max() < start + extent
            assert (values.diff() >= 0).all()
            assert len(values.unique()) == min(extent, len(values))


@pytest.mark.parametrize(("grid", "scale"), [((14, 14), (0.1, 0.3)), ((224, 224), (0.1, 0.3)), ((30, 40), (0.1, 0.3))])
def test_boxes_keep_scale_and_ratio_but_for_the_snapping(grid, scale):
    _, _, height, width = sample_boxes(4000, grid, scale).double().unbind(1)
    area = grid[0] * grid[1]
    half = 0.5 + 1e-3  # a side is moved by at most half a cell
    assert ((height - half) * (width - half) <= scale[1] * area).all()
    assert ((height + half) * (width + half) >= scale[0] * area).all()
    assert ((width - half) / (height + half) <= RATIO[1]).all()
    assert ((width + half) / (height - half) >= RATIO[0]).all()
    # the whole range is used
    share = height * width / area
    assert share.min() < scale[0] + 0.05
    assert share.max() > scale[1] - 0.05
    assert (width / height).min() < 0.85
    assert (width / height).max() > 1.18


def test_the_scale_is_drawn_uniformly():
    torch.manual_seed(0)
    _, _, height, width = sample_boxes(20_000, (1000, 1000), (0.1, 0.3)).double().unbind(1)
    share = (height * width / 1e6).sort().values
    uniform = torch.linspace(0.1, 0.3, len(share), dtype=torch.float64)
    torch.testing.assert_close(share, uniform, atol=0.005, rtol=0)


def test_boxes_reach_all_four_corners():
    torch.manual_seed(0)
    top, left, height, width = sample_boxes(2000, (8, 10), (0.1, 0.3)).unbind(1)
    assert (top == 0).any()
    assert (left == 0).any()
    assert (top + height == 8).any()
    assert (left + width == 10).any()


def test_a_crop_that_is_not_resized_is_a_plain_cut():
    images = torch.rand(2, 3, 20, 24)
    boxes = torch.tensor([[2, 3, 8, 12], [12, 12, 8, 12]])
    cut = torch.stack([images[0, :, 2:10, 3:15], images[1, :, 12:20, 12:24]])
    torch.testing.assert_close(crop_images(images, boxes, (8, 12)), cut, atol=1e-5, rtol=0)


def test_a_view_of_the_whole_image_at_its_own_size_is_the_image():
    images = torch.rand(2, 3, 16, 24)
    boxes = torch.tensor([[0, 0, 16, 24]] * 2)
    torch.testing.assert_close(crop_images(images, boxes, (16, 24)), images, atol=1e-5, rtol=0)


def test_an_enlarged_crop_is_interpolated_as_torchvision_does():
    images = torch.rand(1, 3, 20, 24)
    expected = resized_crop(images, 2, 3, 8, 10, [24, 20], antialias=False)
    crop = crop_images(images, torch.tensor([[2, 3, 8, 10]]), (24, 20))
    # at its border torchvision repeats the crop's last pixel, where here the image goes on
    torch.testing.assert_close(crop[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_a_crop_of_half_size_averages_all_its_pixels():
    images = torch.rand(1, 3, 16, 16)
    crop = crop_images(images, torch.tensor([[2, 4, 8, 12]]), (4, 6))
    torch.testing.assert_close(crop, avg_pool2d(images[:, :, 2:10, 4:16], 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (10, 24)])
def test_crops_show_their_box_of_their_own_image(size):
    # the pixels say where they are, and in which image: a linear image stays linear under any interpolation
    cell, (height, width) = (5, 3), (4 * 5, 6 * 3)
    rows = (torch.arange(height) + 0.5)[:, None].expand(height, width)
    columns = (torch.arange(width) + 0.5)[None].expand(height, width)
    images = torch.stack([torch.stack([rows, columns, torch.full_like(rows, i)]) for i in (0.0, 100.0)])
    crops = crop_images(images, BOXES, size, cell=cell)
    assert crops.shape == (6, 3, *size)
    for index, (top, left, h, w) in enumerate(BOXES.tolist()):
        expected_rows = (top + (torch.arange(size[0]) + 0.5) * h / size[0]) * cell[0]
        expected_columns = (left + (torch.arange(size[1]) + 0.5) * w / size[1]) * cell[1]
        got = crops[index]
        # half a pixel at the image's border is repeated, not continued
        atol = 0.5
        torch.testing.assert_close(got[0, :, size[1] // 2], expected_rows, atol=atol, rtol=0)
        torch.testing.assert_close(got[1, size[0] // 2], expected_columns, atol=atol, rtol=0)
        middle = (size[0] // 2, size[1] // 2)
        assert got[0][middle].item() == pytest.approx(expected_rows[middle[0]].item(), abs=1e-3)
        assert got[1][middle].item() == pytest.approx(expected_columns[middle[1]].item(), abs=1e-3)
        torch.testing.assert_close(got[2], torch.full(size, 100.0 * (index // 3)))


def test_targets_equal_a_hand_computed_block_for_each_image():
    labels = torch.stack([torch.arange(24).reshape(4, 6), 100 + torch.arange(24).reshape(4, 6)])
    targets = crop_targets(labels, BOXES, (4, 8))
    assert targets.shape == (6, 4, 8)
    by_hand = {
        0: [[0] * 8] * 4,
        # box (1, 2, 3, 4): 3 rows on 4 positions (centres 0.375, 1.125, 1.875, 2.625), 4 columns on 8
        1: [[row * 6 + column for column in (2, 2, 3, 3, 4, 4, 5, 5)] for row in (1, 2, 2, 3)],
        3: [[123] * 8] * 4,
        5: [[100 + row * 6 + column for column in (1, 1, 1, 1, 2, 2, 2, 2)] for row in (0, 0, 1, 1)],
    }
    for index, block in by_hand.items():
        assert targets[index].tolist() == block


@pytest.mark.parametrize("size", [(4, 6), (8, 9), (1, 1), (16, 5)])
def test_targets_are_the_nearest_cell_of_the_own_box(size):
    labels = torch.randint(0, 50, (2, 4, 6))
    targets = crop_targets(labels, BOXES, size)
    for index, (top, left, h, w) in enumerate(BOXES.tolist()):
        for row in range(size[0]):
            for column in range(size[1]):
                cell = (top + int((row + 0.5) * h / size[0]), left + int((column + 0.5) * w / size[1]))
                assert targets[index, row, column] == labels[index // 3][cell]


def test_soft_targets_are_cut_as_labels_are():
    labels = torch.randint(0, 5, (2, 4, 6))
    soft = torch.nn.functional.one_hot(labels, 5).float()
    targets = crop_targets(soft, BOXES, (8, 8))
    assert targets.shape == (6, 8, 8, 5)
    assert torch.equal(targets.argmax(-1), crop_targets(labels, BOXES, (8, 8)))
    assert torch.equal(targets.sum(-1), torch.ones(6, 8, 8))


def test_targets_are_aligned_with_the_crops():
    torch.manual_seed(0)
    grid, cell, size = (7, 5), (8, 8), (48, 48)
    labels = torch.randint(0, 9, (3, *grid))
    boxes = sample_boxes(12, grid, (0.1, 0.3))
    images = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1).float()
    crops, targets = crop_images(images, boxes, size, cell=cell)[:, 0], crop_targets(labels, boxes, size)
    for crop, target, (_, _, h, w) in zip(crops, targets, boxes.tolist(), strict=True):
        # in the middle of a patch the image shows the patch's own label
        rows = ((torch.arange(h) + 0.5) * size[0] / h).long()
        columns = ((torch.arange(w) + 0.5) * size[1] / w).long()
        torch.testing.assert_close(crop[rows][:, columns], target[rows][:, columns].float(), atol=1e-4, rtol=0)
