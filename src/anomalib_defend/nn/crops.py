"""Random boxes on a lattice, and what images and label maps show inside them.

A box is (top, left, height, width) in cells of its lattice: pixels for the view, patches for the crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import roi_align


def sample_boxes(
    count: int,
    grid: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw boxes as a random resized crop does, snapped to the cells of a lattice.

    Args:
        count: Number of boxes.
        grid: Height and width of the lattice in cells.
        scale: Range of the box's share of the area, drawn uniformly.
        ratio: Range of width / height, drawn log-uniformly.
        device: Where the boxes live.

    Returns:
        Boxes inside the lattice of at least one cell, [count, 4] long.
    """
    height, width = grid
    area = torch.empty(count, device=device).uniform_(*scale) * height * width
    aspect = torch.empty(count, device=device).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    h = (area / aspect).sqrt().round().clamp(1, height)
    w = (area * aspect).sqrt().round().clamp(1, width)
    top = (torch.rand(count, device=device) * (height - h + 1)).floor()
    left = (torch.rand(count, device=device) * (width - w + 1)).floor()
    return torch.stack([top, left, h, w], dim=1).long()


def crop_images(images: Tensor, boxes: Tensor, size: tuple[int, int], cell: tuple[int, int] = (1, 1)) -> Tensor:
    """Cut one or more boxes out of each image and resize them, in one operation (bilinear, averaging when it shrinks).

    Args:
        images: [B, C, H, W].
        boxes: [B * n, 4] in cells; boxes b * n to (b + 1) * n - 1 belong to image b.
        size: Height and width of the result.
        cell: Height and width of a cell in pixels.

    Returns:
        [B * n, C, *size].
    """
    top, left, h, w = (boxes * boxes.new_tensor([*cell, *cell])).float().unbind(dim=1)
    owner = torch.arange(len(boxes), device=images.device).div(len(boxes) // len(images), rounding_mode="floor")
    regions = torch.stack([owner.float(), left, top, left + w, top + h], dim=1)
    return roi_align(images.float(), regions, output_size=size, sampling_ratio=0, aligned=True)


def crop_targets(targets: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The alignment phi: what each crop's own box selects of its image's target map, nearest cell per position.

    Args:
        targets: Per image and patch, [B, gh, gw, ...]: labels, or assignments with K trailing channels.
        boxes: [B * n, 4] in patches, ordered as in `crop_images`.
        size: Resolution (height, width) at which crop and target are compared.

    Returns:
        [B * n, *size, ...].
    """
    top, left, h, w = boxes.unbind(dim=1)
    owner = torch.arange(len(boxes), device=boxes.device).div(len(boxes) // len(targets), rounding_mode="floor")

    def positions(start: Tensor, extent: Tensor, steps: int) -> Tensor:
        centres = (2 * torch.arange(steps, device=boxes.device) + 1) * extent[:, None]  # in cells, times 2 * steps
        return start[:, None] + centres.div(2 * steps, rounding_mode="floor")

    rows, columns = positions(top, h, size[0]), positions(left, w, size[1])
    return targets[owner[:, None, None], rows[:, :, None], columns[:, None, :]]
