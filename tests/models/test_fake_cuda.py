"""Losses and forward passes on device ``cuda`` without one: tensors that are made on another device are found."""

import pytest
import torch
from every_model import ROWS, SMALL_HEAD
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from anomalib_defend.models.arnet.torch_model import ARNetModel
from anomalib_defend.models.deep_svdd.torch_model import DeepSVDDModel
from anomalib_defend.models.defend.torch_model import DefendModel
from anomalib_defend.models.fcdd.torch_model import FCDDModel
from anomalib_defend.models.fitymi import torch_model as fitymi
from anomalib_defend.models.kdad.torch_model import KDADModel
from anomalib_defend.models.msad.torch_model import MSADModel
from anomalib_defend.models.panda.torch_model import PANDAModel
from anomalib_defend.models.transformaly.torch_model import TransformalyModel
from anomalib_defend.models.uniad.torch_model import UniADModel
from anomalib_defend.nn import dense_prototypes
from anomalib_defend.nn.normality import Center, Clusters, NearestNeighbors

CUDA = "cuda:0"


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    for name, value in SMALL_HEAD.items():
        monkeypatch.setattr(dense_prototypes, name, value)


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


def losses_of(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each stage's loss on images [B, 3, H, W]."""
    losses = {}
    if isinstance(model, DefendModel):
        teacher = model.teacher_output(model.whole(images), attend=model.is_guided)
        losses = {
            "dense_step": model.dense_step(images)[0],
            "distill_step": model.distill_step(images),
            "distill_step on a kept output of the teacher": model.distill_step(images, teacher),
        }
    elif isinstance(model, fitymi.FitymiModel):
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        losses = {
            "generator": model.generator.loss(images[..., :8, :8]),
            "classification_loss": model.classification_loss(images, labels),
        }
    elif isinstance(model, ARNetModel):
        losses = {"restoration_step": model.restoration_step(images)[0]}
    elif isinstance(model, KDADModel):
        losses = {"distill_step": model.distill_step(images)}
    elif isinstance(model, MSADModel):
        losses = {"loss": model.loss(images, images.flip(-1))}
    elif isinstance(model, PANDAModel):
        losses = {"loss": model.loss(images)}
    elif isinstance(model, TransformalyModel):
        losses = {"imitation_loss": model.imitation_loss(images)}
    elif isinstance(model, DeepSVDDModel):
        losses = {"reconstruction_loss": model.reconstruction_loss(images), "center_loss": model.center_loss(images)}
    elif isinstance(model, FCDDModel):
        anomalous = torch.ones(len(images), dtype=torch.bool, device=images.device)
        losses = {"loss": model.loss(images, anomalous)}
    elif isinstance(model, UniADModel):
        losses = {"restoration_loss": model.restoration_loss(images)}
    return losses


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_losses_and_forward_pass(row, monkeypatch):
    module = row.build()
    network = module.model
    size = getattr(network, "resized_size", getattr(network, "image_size", (32, 32)))
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
        losses = losses_of(network, images)
        assert losses or not any(stage.trains for stage in module.stages())
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
