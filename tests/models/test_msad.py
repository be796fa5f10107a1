"""MSAD: losses against loops, what is trained (``test_every_model.py`` and ``test_tuned_encoder.py`` have the rest)."""

import math

import pytest
import timm
import torch

import encoders
from anomalib_defend import MSAD
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.msad.loss import angular_loss, mean_shifted_loss
from anomalib_defend.models.msad.torch_model import MSADModel

TINY = {"backbone": encoders.MINIATURE, "pre_trained": False, "seed": 0}


def unit(vector):
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def expected_loss(first, second, center):
    """In float64, view by view."""
    views = [unit([x - c for x, c in zip(z, center, strict=True)]) for z in (*first, *second)]
    number, total = len(first), 0.0
    for i, view in enumerate(views):
        others = sum(math.exp(dot(view, other) / 0.25) for j, other in enumerate(views) if j != i)
        total -= math.log(math.exp(dot(view, views[(i + number) % (2 * number)]) / 0.25) / others)
    return total / len(views)


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(4, 6, generator=generator)) for _ in range(2))
    return first, second, torch.randn(6, generator=generator) / 5


def test_the_mean_shifted_loss(vectors):
    first, second, center = (value.double().tolist() for value in vectors)
    expected = expected_loss(first, second, center)
    assert mean_shifted_loss(*vectors).item() == pytest.approx(expected, rel=1e-5)


def test_one_image_has_no_loss(vectors):
    first, second, center = vectors
    first.requires_grad_()
    loss = mean_shifted_loss(first[:1], second[:1], center)
    loss.backward()
    assert loss.item() == 0
    assert not first.grad.any()


def test_the_angular_loss(vectors):
    first, second, center = (value.double() for value in vectors)
    center = center / center.norm()
    expected = sum(2 - 2 * dot(z.tolist(), center.tolist()) for z in (*first, *second)) / 8
    assert angular_loss(vectors[0], vectors[1], center).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("angular", [False, True])
def test_the_models_loss(angular):
    torch.manual_seed(0)
    model = MSADModel(encoders.MINIATURE, (32, 32), angular=angular)
    views = torch.randn(2, 3, 3, 32, 32)
    model.center.fit(model.encode(torch.randn(5, 3, 32, 32)))
    encoder = model.encoder.double()
    z, other = ([unit(encoder(image[None].double())[0].tolist()) for image in view] for view in views)
    model.encoder.float()
    center = model.center.center.double().tolist()
    if angular:
        center = unit(center)
    expected = expected_loss(z, other, center)
    if angular:
        expected += sum(2 - 2 * dot(vector, center) for vector in (*z, *other)) / 6
    assert model.loss(*views).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("backbone", "arguments", "trained"),
    [
        (encoders.MINIATURE, {}, ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")),
        (encoders.MINIATURE, {"trainable_blocks": 1}, ("blocks.2.", "norm.")),
        ("resnet18", {}, ("conv1", "bn1", "layer")),
        ("resnet50", {}, ("layer3.", "layer4.")),
        ("resnet50", {"trainable_blocks": 4}, ("layer",)),
    ],
)
def test_what_is_trained(backbone, arguments, trained):
    with torch.device("meta"):
        encoder = MSADModel(backbone, (32, 32), **arguments).encoder
    asked = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert asked == {name for name, _ in encoder.named_parameters() if name.startswith(trained)}


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        model = MSAD()
    assert (model.hparams.backbone, model.hparams.epochs) == ("resnet152.tv_in1k", 20)
    (optimizer,) = [stage.optimizers() for stage in model.stages()]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-5, 0, 5e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trainable_blocks": 4}, "trainable_blocks=4, but 'vit_miniature_patch8_32' has 3 blocks"),
        ({"trainable_blocks": 0}, "trainable_blocks=0, but"),
        ({"momentum": 2}, "momentum=2 must be at least 0 and at most 1"),
        ({"backbone": "resnet"}, "backbone='resnet' is not a timm model"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MSAD(**{**TINY, **arguments})


def test_the_centre_is_that_of_the_pretrained_encoder(make_data, make_engine, caplog, tmp_path):
    """And the memory that of the tuned one."""
    torch.manual_seed(0)
    torch.save(timm.create_model(encoders.MINIATURE, num_classes=0).state_dict(), tmp_path / "weights.pth")
    pretrained = MSADModel(encoders.MINIATURE, (32, 32))
    load_weights(pretrained.encoder, tmp_path / "weights.pth")
    model, data = MSAD(**TINY, weights=str(tmp_path / "weights.pth"), epochs=2, lr=0.1), make_data()
    with caplog.at_level("INFO"):
        make_engine().fit(model, datamodule=data)
    assert "Mean cosine of the features to those of the pretrained encoder: 0." in caplog.text
    images = torch.cat([model.pre_processor(item.image[None]) for item in data.train_data])
    tuned = model.model.encode(images)
    torch.testing.assert_close(model.model.normality.memory, tuned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.model.center.center, pretrained.encode(images).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert (model.model.center.center - tuned.mean(dim=0)).abs().max() > 1e-3
