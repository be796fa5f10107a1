"""Losses and forward passes on device ``cuda`` without one: tensors that are made on another device are found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_model import ROWS, SMALL_NETWORKS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.defend.torch_model import DefendModel
from anomalib_defend.models.fcdd.torch_model import FCDDModel
from anomalib_defend.models.fitymi import torch_model as fitymi
from anomalib_defend.models.msad.torch_model import MSADModel
from anomalib_defend.nn.normality import Center, Clusters, NearestNeighbors
from anomalib_defend.nn.views import needed_size

CUDA = "cuda:0"


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    for place, name, value in SMALL_NETWORKS:
        monkeypatch.setattr(place, name, value)


@pytest.fixture
def fake():
    """Tensors without values, which know their device; what follows from values (``nonzero``) has symbols for sizes."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as mode:
        yield mode


def to_cuda(network: nn.Module) -> nn.Module:
    """As ``network.to("cuda")``: parameters and buffers alone."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                there = torch.empty(value.shape, device=CUDA)
                module._parameters[name] = nn.Parameter(there, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
    return network


def losses_of(module: NoveltyDetectorMixin, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each stage's loss on images [B, 3, H, W]: of its step, unless that draws numbers or reads files."""
    model: Any = module.model
    if isinstance(model, fitymi.FitymiModel):
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return {
            "generator": model.generator.loss(images[..., :8, :8]),
            "classification_loss": model.classification_loss(images, labels),
        }
    if isinstance(model, MSADModel):
        return {"loss": model.loss(images, images.flip(-1))}
    if isinstance(model, FCDDModel):
        return {"loss": model.loss(images, torch.ones(len(images), dtype=torch.bool, device=images.device))}
    batch, run = SimpleNamespace(image=images, image_path=["no file"] * len(images)), SimpleNamespace(epoch=0)
    losses = {stage.loss_name: stage.step(batch, run).loss for stage in module.stages() if stage.trains}
    if isinstance(model, DefendModel):
        teacher = model.teacher_output(model.whole(images), attend=model.is_guided)
        losses["distill_loss on a kept output of the teacher"] = model.distill_step(images, teacher)
    return losses


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_losses_and_forward_pass(row, monkeypatch):
    module = row.build()
    network = module.model
    size = getattr(network, "resized_size", getattr(network, "image_size", (32, 32)))
    if hasattr(network, "boxes"):  # parts of an image
        size = needed_size(network.image_size, network.boxes)
    if row.model.__name__ == "Fitymi":
        network.generator = module.build_generator()
        monkeypatch.setattr(fitymi, "random_crops", fitymi.center_crop)  # their places are drawn as numbers
    # a gradient needs a real device
    monkeypatch.setattr(torch.autograd, "grad", lambda _output, images: (torch.zeros_like(images),))
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        to_cuda(network).train()
        images = torch.rand(2, 3, *size, device=CUDA)
        for center in (part for part in module._normality if isinstance(part, Center)):
            features = network.represent(images) if center is network.normality else network.encode(images)
            center.fit(features.detach())
        losses = losses_of(module, images)
        assert bool(losses) == any(stage.trains for stage in module.stages())
        for name, loss in losses.items():
            assert loss.device.type == "cuda", name  # a backward pass needs a real device
        for normality in module._normality:
            if isinstance(normality, NearestNeighbors):
                normality.memory = torch.rand(5, normality.memory.shape[1], device=CUDA)
        with torch.no_grad():
            predictions = network.eval()(images)
        for value in predictions:
            assert value is None or value.device.type == "cuda"


@pytest.mark.parametrize("center", [False, True])
def test_nearest_neighbours(fake, center):
    normality = NearestNeighbors(4, 2, center)
    to_cuda(normality)
    normality.fit(torch.rand(6, 4))  # features come from the CPU
    assert normality(torch.rand(3, 4, device=CUDA)).device.type == "cuda"
    normality.reset()
    assert normality.memory.device.type == "cuda"


def test_clusters(fake):
    assert to_cuda(Clusters(4, 3))(torch.rand(3, 4, device=CUDA)).device.type == "cuda"


def test_a_tensor_on_the_wrong_device_is_found(fake):
    class Wrong(nn.Linear):
        def forward(self, images):
            return super().forward(images) + torch.ones(1)

    with pytest.raises(RuntimeError, match="same device"):
        to_cuda(Wrong(3, 3))(torch.rand(2, 3, device=CUDA))
