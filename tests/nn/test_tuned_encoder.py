"""Which part of an encoder is tuned, and that the rest of it stays as it is."""

import pytest
import timm
import torch

import encoders
from anomalib_defend.nn.tuned_encoder import TunedEncoder, parameter_blocks


class Plain(TunedEncoder):
    normalize = False


class Unit(TunedEncoder):
    normalize = True


@pytest.mark.parametrize(
    ("backbone", "number", "last"),
    [
        ("resnet18", 4, ["layer4"]),
        ("resnet152", 4, ["layer4"]),
        ("vit_tiny_patch16_224", 12, ["blocks.11", "norm"]),
        ("tf_efficientnet_lite2", 7, ["blocks.6", "conv_head", "bn2"]),
        ("convnext_tiny", 4, ["stages.3", "head.norm"]),
        ("swin_tiny_patch4_window7_224", 4, ["layers.3", "norm"]),
    ],
)
def test_an_encoders_blocks(backbone, number, last):
    with torch.device("meta"):
        encoder = timm.create_model(backbone, num_classes=0)
    stem, *blocks = parameter_blocks(encoder)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert len(blocks) == number
    assert sum(map(len, (stem, *blocks))) == len(names)
    assert {id(p) for p in blocks[-1]} == {key for key, name in names.items() if name.startswith(tuple(last))}


def test_the_last_blocks_and_the_final_norm_are_trained():
    model = Plain(encoders.MINIATURE, (32, 32))
    model.train_last(2)
    model.train().features(torch.randn(2, 3, 32, 32)).sum().backward()
    trained = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    expected = ("blocks.1.", "blocks.2.", "norm.")
    assert trained == {name for name, _ in model.encoder.named_parameters() if name.startswith(expected)}


def test_batch_norms_and_dropout_are_as_in_evaluation():
    model = Plain("resnet18", (32, 32)).train()
    assert not any(module.training for module in model.encoder.modules())
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    images = torch.randn(3, 3, 32, 32)
    features = model.features(images)
    assert features.requires_grad
    for name, buffer in model.encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name
    torch.testing.assert_close(features[:1], model.features(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Plain, Unit])
def test_the_score_is_the_sum_of_two_squared_distances(kind):
    """With a loop over images in float64."""
    model = kind(encoders.MINIATURE, (32, 32)).eval()
    known, images = torch.randn(5, 3, 32, 32), torch.randn(3, 3, 32, 32)
    model.normality.fit(model.encode(known))
    encoder = model.encoder.double()

    def features(image):
        vector = encoder(image[None].double())[0].tolist()
        length = sum(x * x for x in vector) ** 0.5 if kind is Unit else 1
        return [x / length for x in vector]

    memory = [features(image) for image in known]
    expected = []
    for image in images:
        f = features(image)
        expected.append(sum(sorted(sum((x - y) ** 2 for x, y in zip(f, m, strict=True)) for m in memory)[:2]))
    encoder.float()
    assert model.score(images).tolist() == pytest.approx(expected, rel=1e-5)


def test_an_encoder_without_blocks_is_refused():
    message = "'pit_ti_224' is a PoolingVisionTransformer without blocks .* could be tuned: take resnet152"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Plain("pit_ti_224", (224, 224))
