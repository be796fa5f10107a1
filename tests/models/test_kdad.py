"""KDAD: both forms' loss and score against loops, cloners, gradient map (``test_every_model.py`` has the rest)."""

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F

import encoders
from anomalib_defend import KDAD
from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.kdad.loss import gradient_map
from anomalib_defend.models.kdad.torch_model import VggForm, VitForm
from anomalib_defend.nn.encoder import create_encoder
from anomalib_defend.nn.vgg import slim_copy

SIZE = (32, 40)
WEIGHT = 0.3
VGG = {"backbone": encoders.MINIATURE_VGG, "pre_trained": False, "seed": 0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(3, 3, *SIZE)


@pytest.fixture
def vgg():
    model = VggForm(encoders.MINIATURE_VGG, SIZE, WEIGHT)
    model.reset()
    return model


@pytest.fixture
def vit():
    return VitForm(encoders.MINIATURE, SIZE)


# --------------------------------------------------------------------------------------------------------- VGG form


def poolings(layers, images):
    outputs = []
    for layer in layers:
        images = layer(images)
        if isinstance(layer, torch.nn.MaxPool2d):
            outputs.append(images)
    return outputs


def vgg_distances(model, images, number):
    """Of each image, in float64: sum over the last poolings of 1 - cos + lambda MSE."""
    model, images = copy.deepcopy(model).double(), images.double()
    cloner, teacher = poolings(model.cloner, images), poolings(model.teacher.features, images)
    assert len(cloner) == len(teacher) == 5
    distances = []
    for index in range(len(images)):
        total = 0.0
        for cloned, taught in zip(cloner[-number:], teacher[-number:], strict=True):
            a, b = cloned[index].flatten().tolist(), taught[index].flatten().tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            total += 1 - dot / norms + WEIGHT * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
        distances.append(total)
    return distances


def test_the_vgg_forms_loss_compares_four_poolings(vgg, images):
    vgg.train()
    expected = sum(vgg_distances(vgg, images, 4)) / len(images)
    known = copy.deepcopy(vgg).teacher_output(images)
    assert copy.deepcopy(vgg).distill_step(images).item() == pytest.approx(expected, rel=1e-5)
    assert vgg.distill_step(images, known).item() == pytest.approx(expected, rel=1e-5)
    shape = vgg.teacher_shape
    assert known.layers[0].shape == (3, shape.patches, shape.channels)
    assert shape.layers == len(known.layers)


def test_the_vgg_forms_score_compares_three_poolings(vgg, images):
    expected = vgg_distances(vgg.eval(), images, 3)
    with torch.inference_mode():
        assert vgg(images).pred_score.tolist() == pytest.approx(expected, rel=1e-5)
    with vgg.without_map():
        predictions = vgg(images)
        assert predictions.anomaly_map is None
        assert predictions.pred_score.tolist() == pytest.approx(expected, rel=1e-5)
    assert vgg(images).anomaly_map is not None


def test_the_map_is_the_scores_gradient(vgg, images, monkeypatch):
    """By small changes of a few pixels in float64, smoothing left out."""
    monkeypatch.setattr("anomalib_defend.models.kdad.torch_model.gradient_map", lambda gradient: gradient)
    monkeypatch.setattr("anomalib_defend.models.kdad.torch_model.IMAGES_AT_ONCE", 2)
    with torch.inference_mode():
        gradient = vgg.eval()(images).anomaly_map
    step = 1e-6
    for index, channel, row, column in ((0, 0, 3, 5), (1, 1, 16, 20), (2, 2, 31, 0)):
        changed = images[index : index + 1].double().repeat(2, 1, 1, 1)
        changed[0, channel, row, column] += step
        changed[1, channel, row, column] -= step
        more, less = vgg_distances(vgg, changed, 3)
        expected = (more - less) / (2 * step)
        assert gradient[index, channel, row, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_the_maps_extremes_are_clipped_and_smoothed():
    gradient = torch.full((2, 3, 40, 50), -0.5)
    gradient[1, :, 20, 25] = 100  # one pixel of 2000: beyond the 99th percentile
    maps = gradient_map(gradient)
    assert maps.shape == (2, 1, 40, 50)
    torch.testing.assert_close(maps, torch.full_like(maps, 1.5))
    gradient[0, :, :20] = 0
    edge = gradient_map(gradient)[0, 0]
    assert edge[0, 25] < 0.01
    assert edge[:, 25].diff().min() > -1e-5  # from black to white in a smooth slope
    assert 0.6 < edge[19, 25] < 0.9


def test_the_cloner_is_the_papers():
    with torch.device("meta"):
        cloner = slim_copy(timm.create_model("vgg16", num_classes=0))
    convolutions = [layer for layer in cloner if isinstance(layer, torch.nn.Conv2d)]
    widths = [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert [layer.out_channels for layer in convolutions] == widths
    assert all(layer.bias is None for layer in convolutions)
    assert sum(layer.weight.numel() for layer in convolutions) == 343_728
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in cloner) == 13 - 5


# --------------------------------------------------------------------------------------------------------- ViT form


def vit_distances(model, images):
    """Of each image, in float64: a list of its patches' mean squared difference over the channels."""
    model, images = copy.deepcopy(model).double(), images.double()
    teacher = model.teacher.forward_features(images)[:, 1:]
    cloner = model.cloner.forward_features(images)[:, 1:]
    distances = []
    for s, t in zip(cloner, teacher, strict=True):
        patches = []
        for a, b in zip(s.tolist(), t.tolist(), strict=True):
            length_a, length_b = (math.sqrt(sum(x * x for x in v)) for v in (a, b))
            patches.append(sum((x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True)) / len(a))
        distances.append(patches)
    return distances


def test_the_vit_forms_loss_and_score(vit, images):
    distances = vit_distances(vit.eval(), images)
    means = [sum(patches) / len(patches) for patches in distances]
    assert vit.distill_step(images).item() == pytest.approx(sum(means) / 3, rel=1e-5)
    predictions = vit(images)
    assert predictions.pred_score.tolist() == pytest.approx(means, rel=1e-5)
    maps = F.interpolate(torch.tensor(distances).reshape(3, 1, 4, 5), size=SIZE, mode="bilinear")
    torch.testing.assert_close(predictions.anomaly_map, maps, rtol=1e-4, atol=1e-7)


def test_the_vit_forms_cloner(vit):
    cloner = vit.cloner
    assert len(cloner.blocks) == 4
    for block in cloner.blocks:
        assert block.attn.num_heads == 8
        assert block.mlp.fc1.out_features == 512
        assert block.norm1.eps == block.norm2.eps == 1e-5
        assert {block.attn.attn_drop.p, block.attn.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p} == {0.2}
    assert not list(cloner.norm.parameters())
    assert cloner.pos_embed.std().item() == pytest.approx(1, abs=0.15)


# -------------------------------------------------------------------------------------------------------- both forms


@pytest.mark.parametrize("form", ["vgg", "vit"])
def test_the_cloner_alone_is_trained(form, images, request):
    model = request.getfixturevalue(form).train()
    assert not any(module.training for module in model.teacher.modules())
    model.distill_step(images).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("cloner.")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18"}, r"'resnet18' is a ResNet: KDAD takes a VGG \(vgg16"),
        ({"backbone": "vgg_16"}, "is not a timm model. Similar names: .*vgg16"),
        ({"image_size": 31}, "must be at least 32 x 32"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"mse_weight": -1}, "mse_weight=-1 must be at least 0"),
        ({"backbone": encoders.MINIATURE, "image_size": 36}, "must be a multiple of the patch size"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        KDAD(**{**VGG, **arguments})


@pytest.mark.parametrize(("backbone", "epochs"), [(encoders.MINIATURE_VGG, 200), (encoders.MINIATURE, 10)])
def test_each_form_has_its_number_of_epochs(backbone, epochs):
    run = SimpleNamespace(is_trial=False)
    (stage,) = KDAD(backbone, pre_trained=False).stages()
    assert stage.plan(run) == epochs
    (stage,) = KDAD(backbone, pre_trained=False, epochs=3).stages()
    assert stage.plan(run) == 3


def test_the_cache_makes_no_difference_but_rounding(make_data, make_engine):
    states = {}
    for place in ("ram", "off"):
        model = KDAD(**VGG, epochs=2, teacher_cache=place)
        make_engine().fit(model, datamodule=make_data())
        states[place] = model.model.cloner.state_dict()
    for name, value in states["ram"].items():
        torch.testing.assert_close(states["off"][name], value, rtol=2e-2, atol=4e-3, msg=name)


def test_an_export_says_that_it_has_no_map(monkeypatch, caplog, tmp_path):
    drawn = []
    monkeypatch.setattr(NoveltyDetectorMixin, "to_onnx", lambda self, _root: drawn.append(self.model._draws_map))
    model = KDAD(**VGG)
    with caplog.at_level(logging.WARNING):
        model.to_onnx(tmp_path)
    assert "has no heat map" in caplog.text
    assert drawn == [False]
    assert model.model._draws_map
    assert "depends on each pixel" in model.map_note


@pytest.mark.slow
def test_an_openvino_model_has_no_map_and_the_user_is_told(make_data, make_engine, caplog, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = KDAD(**VGG, epochs=1)
    make_engine().fit(model, datamodule=make_data())
    with caplog.at_level(logging.WARNING):
        file = model.to_openvino(tmp_path)
    assert "has no heat map" in caplog.text
    names = {name for output in openvino.Core().read_model(file).outputs for name in output.names}
    assert "pred_score" in names
    assert "anomaly_map" not in names


def test_weights_of_a_whole_vgg_are_taken(tmp_path):
    """Its fully connected layers are left out where the teacher has none, and only there."""
    whole = timm.create_model(encoders.MINIATURE_VGG, num_classes=2)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    for encoder in (VggForm(encoders.MINIATURE_VGG, SIZE).teacher, create_encoder(encoders.MINIATURE_VGG, SIZE)):
        load_weights(encoder, tmp_path / "weights.pth")
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name]), name
