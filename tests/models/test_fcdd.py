"""FCDD: loss, score and map, by loops over images, and its outliers (``test_every_model.py`` has the rest)."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from every_model import OUTLIERS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from anomalib_defend import FCDD
from anomalib_defend.models.fcdd import stages
from anomalib_defend.models.fcdd.loss import hypersphere_loss, pseudo_huber
from anomalib_defend.models.fcdd.torch_model import FCDDModel, augment, enlargement
from encoders import MINIATURE, MINIATURE_VGG

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def small() -> FCDDModel:
    torch.manual_seed(0)
    return FCDDModel(None, (16, 16), HALF, HALF).eval()


def places_of(model: FCDDModel, image: torch.Tensor) -> list[float]:
    """sqrt(u^2 + 1) - 1 at every place of one image, in float64."""
    layers = model.encoder if model.used is None else model.encoder.features[: model.used]
    mean, std = ((0.5,) * 3, (0.5,) * 3) if model.used is None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    normalised = torch.stack([(image[c].double() - mean[c]) / std[c] for c in range(3)])
    outputs = copy.deepcopy(model.head).double()(copy.deepcopy(layers).double()(normalised[None]))
    return [math.sqrt(value**2 + 1) - 1 for value in outputs.flatten().tolist()]


@pytest.fixture
def vgg() -> FCDDModel:
    return FCDDModel("vgg11_bn", (32, 32), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD).eval()


@pytest.mark.parametrize("kind", ["small", "vgg"])
def test_loss_and_score_are_those_of_loops_in_float64(kind, request):
    small = request.getfixturevalue(kind)
    images, anomalous = torch.rand(5, 3, *small.image_size), torch.tensor([True, False, False, True, False])
    nn.init.constant_(small.head.bias, 0.5)
    loss, scores = small.loss(images, anomalous).item(), small(images).pred_score
    means = [np.mean(places_of(small, image)) for image in images]
    terms = [-math.log(1 - math.exp(-a)) if odd else a for a, odd in zip(means, anomalous.tolist(), strict=True)]
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    torch.testing.assert_close(scores.double(), torch.tensor(means), rtol=1e-5, atol=1e-7)


def test_small_outputs_keep_their_digits():
    outputs = torch.tensor([0.0, 1e-5, -1e-3, 2.0, 1e4])
    expected = torch.tensor([0.0, 0.5e-10, 0.5e-6 - 0.125e-12, math.sqrt(5) - 1, 1e4 - 1 + 0.5e-4])
    torch.testing.assert_close(pseudo_huber(outputs), expected, rtol=1e-6, atol=0)


def test_an_anomalous_image_near_zero_has_a_bounded_gradient():
    """The published loss has a gradient of 1e24 there."""
    outputs = torch.tensor([0.0, 1e-12, 2e-3, 50.0], requires_grad=True)
    hypersphere_loss(pseudo_huber(outputs), torch.ones(4, dtype=torch.bool)).backward()
    assert outputs.grad.isfinite().all()
    assert outputs.grad.abs().max() < 1000
    assert outputs.grad[2] < 0  # away from zero


def test_a_batch_of_outliers_alone_is_anomalous():
    """The published code takes it for normal."""
    loss = hypersphere_loss(torch.tensor([0.1, 0.2]), torch.ones(2, dtype=torch.bool))
    expected = (-math.log(1 - math.exp(-0.1)) - math.log(1 - math.exp(-0.2))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_map_is_the_places_enlarged_by_gaussians(small):
    image = torch.rand(1, 3, 16, 16)
    found = small(image).anomaly_map[0, 0]
    places = np.array(places_of(small, image[0])).reshape(4, 4)

    def weight(pixel: int, place: int) -> float:
        return math.exp(-((pixel + 0.5 - (4 * place + 2)) ** 2) / (2 * 6**2))

    for y, x in ((0, 0), (3, 12), (15, 7)):
        weights = [[weight(y, i) * weight(x, j) for j in range(4)] for i in range(4)]
        expected = (np.array(weights) * places).sum() / np.sum(weights)
        assert found[y, x].item() == pytest.approx(expected, rel=1e-5)


def test_equal_places_make_an_even_map():
    torch.testing.assert_close(enlargement(32, 8).sum(dim=1), torch.ones(32))


def test_a_vgg_trains_its_fourth_block_and_the_head():
    model = FCDDModel("vgg11_bn", (32, 32), HALF, HALF)
    assert model.used == 21
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[0] for name in trained} == {
        "head", *(f"encoder.features.{index}" for index in (15, 16, 18, 19)),
    }  # fmt: skip
    assert model.places(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 4, 4)
    before = model.encoder.features[1].running_mean.clone()
    model.train().loss(torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.bool))
    assert not torch.equal(model.encoder.features[1].running_mean, before)  # as published


def test_augmentations_change_little():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 16, 16).expand(40, -1, -1, -1)
    views = augment(images)
    assert views.shape == images.shape
    shifts = set()
    for view in views:
        padded = torch.nn.functional.pad(images[0], [4] * 4)
        differences = {
            (top, left, flip): ((source[:, top : top + 16, left : left + 16] - view).abs().mean().item())
            for flip, source in ((False, padded), (True, padded.flip(-1)))
            for top in range(9)
            for left in range(9)
        }
        best = min(differences, key=differences.get)
        assert 0 < differences[best] < 0.02
        shifts.add(best)
    assert len({shift[:2] for shift in shifts}) > 15
    assert {shift[2] for shift in shifts} == {False, True}


def test_half_of_the_images_make_room_for_outliers(make_data, make_engine, monkeypatch, tmp_path):
    folder = tmp_path / "outliers"
    shutil.copytree(OUTLIERS, folder)
    seen = []
    monkeypatch.setattr(stages, "augment", lambda images: images)
    loss = FCDDModel.loss

    def look(self, images, anomalous):
        seen.append((images, anomalous))
        return loss(self, images, anomalous)

    monkeypatch.setattr(FCDDModel, "loss", look)
    data = make_data()
    model = FCDD(outlier_dir=str(folder), image_size=16, epochs=8, seed=0)
    make_engine().fit(model, datamodule=data)
    normal = torch.stack([model.pre_processor(item.image[None])[0] for item in data.train_data])
    images, anomalous = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(images) == 8 * len(normal)
    assert 0.25 < anomalous.float().mean() < 0.75
    for image, odd in zip(images, anomalous, strict=True):
        is_normal = (image - normal).abs().amax(dim=(1, 2, 3)).min() < 0.02
        assert is_normal != odd


@pytest.mark.parametrize("part", ["validation", "test"])
def test_no_image_that_judges_is_among_the_outliers(make_data, make_engine, tmp_path, part):
    data = make_data()
    data.setup()
    (tmp_path / "outliers" / "below").mkdir(parents=True)
    of_part = {"validation": data.val_data, "test": data.test_data}[part]
    shutil.copy(of_part.samples.image_path.iloc[0], tmp_path / "outliers" / "below" / "harmless.jpg")
    with pytest.raises(ValueError, match=rf"outlier_dir='.*' holds 1 of the {part} images \(.*harmless\.jpg\)"):
        make_engine().fit(FCDD(outlier_dir=str(tmp_path / "outliers"), image_size=16), datamodule=data)


def test_without_outliers_all_images_are_normal_and_the_user_is_warned(make_data, make_engine, monkeypatch, caplog):
    """The loss is the mean over the images of the mean over the places, without a logarithm."""
    found = []
    loss = FCDDModel.loss

    def look(self, images, anomalous):
        before = copy.deepcopy(self)
        result = loss(self, images, anomalous)
        means = [sum(places.flatten().tolist()) / places.numel() for places in before.places(images)]
        found.append((anomalous.sum().item(), result.item(), sum(means) / len(means)))
        return result

    monkeypatch.setattr(FCDDModel, "loss", look)
    make_engine().fit(FCDD(image_size=16, epochs=1, seed=0), datamodule=make_data())
    assert "nothing keeps the network from mapping every image to zero" in caplog.text
    assert found
    for outliers, measured, expected in found:
        assert outliers == 0
        assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": MINIATURE}, r"no VGG \(vgg11, vgg16, vgg16_bn"),
        ({"backbone": "vgg_no_such"}, "is not a timm model"),
        ({"weights": "here.pth"}, r"weights='here.pth' are of a backbone: name it \(backbone=vgg11_bn"),
        ({"image_size": 30}, r"image_size=\(30, 30\) must be a multiple of 4"),
        ({"backbone": MINIATURE_VGG, "image_size": 36}, r"image_size=\(36, 36\) must be a multiple of 8"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FCDD(**arguments)
    with pytest.raises(ValueError, match=r"Images of \(8, 8\) reach a model for image_size=\(16, 16\)"):
        FCDDModel(None, (16, 16), HALF, HALF)(torch.zeros(1, 3, 8, 8))
