"""PANDA: its loss against a loop, and its brake (the rest: ``test_every_model.py``, ``test_tuned_encoder.py``)."""

import pytest
import torch

import encoders
from anomalib_defend import PANDA
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.panda.torch_model import PANDAModel

TINY = {"backbone": encoders.MINIATURE, "pre_trained": False, "seed": 0}


def test_the_loss_is_the_mean_squared_distance_to_the_centre():
    """With a loop over images in float64."""
    torch.manual_seed(0)
    model = PANDAModel(encoders.MINIATURE, (32, 32))
    model.center.fit(model.encode(torch.randn(5, 3, 32, 32)))
    images = torch.randn(3, 3, 32, 32)
    center, expected = model.center.center.double().tolist(), 0.0
    encoder = model.encoder.double()
    for image in images:
        features = encoder(image[None].double())[0].tolist()
        expected += sum((f - c) ** 2 for f, c in zip(features, center, strict=True)) / len(features) / len(images)
    encoder.float()
    assert model.loss(images).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [
        (encoders.MINIATURE, ("blocks.1.", "blocks.2.", "norm.")),
        ("resnet152", ("layer3.", "layer4.")),
        ("deit_tiny_patch16_224", ("norm.", *(f"blocks.{number}." for number in range(6, 12)))),
    ],
)
def test_the_last_half_is_trained(backbone, trained):
    with torch.device("meta"):
        encoder = PANDAModel(backbone, (224, 224) if "224" in backbone else (32, 32)).encoder
    asked = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert asked == {name for name, _ in encoder.named_parameters() if name.startswith(trained)}


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        model = PANDA()
    assert (model.hparams.backbone, model.hparams.epochs) == ("resnet152.tv_in1k", 15)
    (stage,) = model.stages()
    (group,) = stage.optimizers().param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-2, 0.9, 5e-5)
    assert stage.gradient_clip == 1e-3


def test_a_step_is_clipped_and_weight_decay_is_not(make_data, make_engine, tmp_path):
    torch.manual_seed(0)
    pretrained = PANDAModel(encoders.MINIATURE, (32, 32))
    torch.save(pretrained.encoder.state_dict(), tmp_path / "weights.pth")
    lr, decay, clip = 0.5, 5e-5, 1e-3
    model = PANDA(**TINY, weights=str(tmp_path / "weights.pth"), epochs=1, lr=lr)
    make_engine(limit_train_batches=1).fit(model, datamodule=make_data())
    load_weights(pretrained.encoder, tmp_path / "weights.pth")
    moved = [
        (after - (1 - lr * decay) * before).flatten()
        for after, before in zip(model.model.encoder.parameters(), pretrained.encoder.parameters(), strict=True)
        if after.requires_grad
    ]
    assert torch.cat(moved).norm().item() == pytest.approx(lr * clip, rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"lr": -1}, "lr=-1 must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PANDA(**{**TINY, **arguments})
