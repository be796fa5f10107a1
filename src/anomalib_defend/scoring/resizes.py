"""The resizes at the beginning of an exported graph: found, and left out where images have the size already.

A graph resizes by two products of dense matrices, which are much more work than torch's resize.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torchvision.transforms.v2 import functional as F

from .runtime import compiled

if TYPE_CHECKING:
    from torch import Tensor

Size: TypeAlias = tuple[int, int]  # height, width

EQUAL = 1e-5  # of scores in float32, but for the order of sums
SAME = 1e-4  # of scores in float32: another resize makes a hundred times as much


def size_without_resize(model: Any) -> Size | None:
    """Height and width of images for which the model's own resize changes nothing, if resizing to it first is the same.

    It is looked for in the graph, and tried: on a random image both ways have to give the same score.
    """
    own = model.input(0).get_partial_shape()
    if all(own[axis].is_static for axis in (2, 3)):
        return own[2].get_length(), own[3].get_length()
    size = next(filter(None, map(_static_size, model.get_ordered_ops())), None)
    if size is None:
        return None
    image = torch.rand(1, 3, 2 * size[0] + 5, size[1] // 2 + 3, generator=torch.Generator().manual_seed(0))
    raw = _scores(model, image, resized(image, size))
    return size if abs(raw[0] - raw[1]) <= SAME * max(1.0, abs(raw[0])) else None


def without_resizes(model: Any, size: Size, *, same_size: bool) -> tuple[Any, Size | None]:
    """Leave out the resize that images of a model's own size do not need, and a next one that all of it is behind.

    Args:
        model: An `openvino.Model`, whose last output is a score.
        size: Height and width of its images, as `size_without_resize` says.
        same_size: Leave out the first one alone: maps have the size of what is scored.

    Returns:
        The rest of the model, and the size that its images are to be resized to from ``size``, if there is a next one.
    """
    generator = torch.Generator().manual_seed(0)
    noise, shapes = torch.rand(1, 3, *size, generator=generator), torch.rand(1, 3, 5, 7, generator=generator)
    image = (noise + resized(shapes, size)) / 2
    (expected,) = _scores(model, image)
    model = _behind_resize(model, image, size, expected) or model
    sizes = dict.fromkeys(filter(None, map(_static_size, model.get_ordered_ops())))
    others = [] if same_size else [each for each in sizes if each != size][:5]
    for inner in reversed(others):  # in the middle of a resize there are four
        rest = _behind_resize(model, image, inner, expected)
        if rest is not None:
            return rest, inner
    return model, None


def _behind_resize(model: Any, image: Tensor, inner: Size, expected: float) -> Any | None:
    """The part of a model that comes after the resize to the inner size; ``None`` if there is none.

    It begins at one of the first operations with images of that size. Up to there pixels may be scaled and shifted by
    channel; what is found is tried: the score has to be as expected.
    """
    import openvino  # noqa: PLC0415 - optional extra
    from openvino import op, opset13  # noqa: PLC0415 - as above

    nodes = []
    node = next((node for node in model.get_ordered_ops() if _static_size(node) == inner), None)
    while node is not None and _static_size(node) == inner:
        nodes.append(node)
        users = {each.get_node().get_friendly_name(): each.get_node() for each in node.output(0).get_target_inputs()}
        node = next(iter(users.values())) if len(users) == 1 else None
    for node in reversed(nodes):
        before = compiled(openvino.Model([node.output(0)], model.get_parameters()), "f32")
        zero, one = (before(torch.full_like(image, value).numpy())[0][:, :, :1, :1] for value in (0, 1))
        if len(zero) != 1:  # several views of each image: one of them alone may give the expected score
            continue
        part = model.clone()
        node_in_part = next(each for each in part.get_ops() if each.get_friendly_name() == node.get_friendly_name())
        start = op.Parameter(openvino.Type.f32, openvino.PartialShape([-1, 3, *inner]))
        node_in_part.output(0).replace(opset13.add(opset13.multiply(start, one - zero), zero).output(0))
        part.input(0).replace(start.output(0))  # whose shape is asked for elsewhere, too
        try:
            part = openvino.Model(part.get_results(), [start])
            (found,) = _scores(part, resized(image, inner))
        except RuntimeError:  # other parts of it see the images before they are resized
            continue
        if abs(found - expected) <= EQUAL * max(1.0, abs(expected)):
            return part
    return None


def _scores(model: Any, *images: Tensor) -> list[float]:
    network = compiled(model, "f32")
    return [float(network(image.numpy())[len(model.outputs) - 1].item()) for image in images]


def resized(images: Tensor, size: Size) -> Tensor:
    """Resize as the engine does, [..., H, W] -> [..., *size]."""
    return F.resize(images, list(size), antialias=True)


def _static_size(node: Any) -> Size | None:
    """Height and width of an operation's output, if it is images of one size."""
    if node.get_output_size() != 1:
        return None
    shape = node.get_output_partial_shape(0)
    if shape.rank.is_dynamic or len(shape) != 4 or not shape[0].is_dynamic or shape[1].is_dynamic:
        return None
    if shape[1].get_length() != 3 or shape[2].is_dynamic or shape[3].is_dynamic:
        return None
    return shape[2].get_length(), shape[3].get_length()
