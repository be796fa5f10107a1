"""UniAD: tokens, attention, noise, loss and score, by loops (``test_every_model.py`` has the rest)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomalib_defend import UniAD
from anomalib_defend.models.uniad import torch_model
from anomalib_defend.models.uniad.stages import RestorationStage
from anomalib_defend.models.uniad.torch_model import UniADModel, add_noise
from anomalib_defend.models.uniad.transformer import HEADS, neighbourhood

ENCODER = "test_efficientnet"


@pytest.fixture
def model(monkeypatch) -> UniADModel:
    monkeypatch.setattr(torch_model, "WIDTH", 16)
    monkeypatch.setattr(torch_model, "NUM_LAYERS", 2)
    torch.manual_seed(0)
    return UniADModel(ENCODER, (128, 128)).eval()


def norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    scaled = [(row - row.mean()) / math.sqrt(row.var() + layer.eps) for row in x]
    return np.array(scaled) * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(x: np.ndarray, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    return x @ weight.detach().double().numpy().T + bias.detach().double().numpy()


def attend(layer: nn.MultiheadAttention, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Of an 8 x 8 grid, place by place and head by head: places within 3 of the query's are not seen."""
    inputs = (query, key, value)
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
    size = q.shape[1] // HEADS
    output = np.zeros_like(q)
    for place in range(64):
        seen = [
            other for other in range(64)
            if abs(other // 8 - place // 8) > 3 or abs(other % 8 - place % 8) > 3
        ]  # fmt: skip
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            logits = np.array([q[place, part] @ k[other, part] / math.sqrt(size) for other in seen])
            shares = np.exp(logits) / np.exp(logits).sum()
            output[place, part] = sum(share * v[other, part] for share, other in zip(shares, seen, strict=True))
    return linear(output, layer.out_proj.weight, layer.out_proj.bias)


def mlp(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    return linear(np.maximum(linear(x, layers[0].weight, layers[0].bias), 0), layers[3].weight, layers[3].bias)


def restored(model: UniADModel, tokens: np.ndarray) -> np.ndarray:
    """Of one image's tokens [64, C], in float64."""
    restorer = model.restorer
    columns, rows = (part.detach().double().numpy() for part in (restorer.columns, restorer.rows))
    places = np.array([np.concatenate([columns[place % 8], rows[place // 8]]) for place in range(64)])
    x = linear(tokens, model.into.weight, model.into.bias)
    for layer in restorer.encoder:
        x = norm(x + attend(layer.attention, x + places, x + places, x), layer.norms[0])
        x = norm(x + mlp(layer.mlp, x), layer.norms[1])
    encoded = output = x
    for layer in restorer.decoder:
        q = layer.queries.detach().double().numpy()
        q = norm(q + attend(layer.to_encoder, q + places, encoded + places, encoded), layer.norms[0])
        q = norm(q + attend(layer.to_input, q + places, output + places, output), layer.norms[1])
        output = norm(q + mlp(layer.mlp, q), layer.norms[2])
    return linear(norm(output, restorer.norm), model.out.weight, model.out.bias)


def test_loss_score_and_map_are_those_of_loops_in_float64(model, monkeypatch):
    images = torch.rand(2, 3, 128, 128)
    tokens = model.tokens(images)
    monkeypatch.setattr(torch_model, "add_noise", lambda tokens: 2 * tokens)
    with torch.no_grad():
        loss, found = model.restoration_loss(images).item(), model(images)
        model.score = "max"
        largest = model(images).pred_score
    terms, scores, maxima = [], [], []
    for index, image in enumerate(tokens.double().numpy()):
        terms.append(((restored(model, 2 * image) - image) ** 2).mean())
        difference = restored(model, image) - image
        distances = torch.tensor([math.sqrt(sum(row**2)) for row in difference]).reshape(1, 1, 8, 8)
        enlarged = F.interpolate(distances, (128, 128), mode="bilinear", align_corners=True)[0, 0].numpy()
        np.testing.assert_allclose(found.anomaly_map[index, 0].numpy(), enlarged, rtol=1e-5, atol=1e-5)
        scores.append(enlarged.mean())
        maxima.append(max(enlarged[y : y + 16, x : x + 16].mean() for y in range(113) for x in range(113)))
    assert loss == pytest.approx(np.mean(terms), rel=1e-5)
    torch.testing.assert_close(found.pred_score, torch.tensor(scores, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(largest, torch.tensor(maxima, dtype=torch.float32), rtol=1e-5, atol=1e-5)


def test_tokens_are_the_four_levels_at_each_place(model):
    images = torch.rand(1, 3, 128, 128)
    tokens = model.tokens(images)[0].reshape(8, 8, -1)
    levels = model.encoder.forward_intermediates(images, indices=[0, 1, 2, 3], intermediates_only=True)
    assert [level.shape[1:] for level in levels] == [(16, 64, 64), (24, 32, 32), (32, 16, 16), (48, 8, 8)]
    start = 0
    for level in levels:
        side, channels = level.shape[-1], level.shape[1]
        part = tokens[..., start : start + channels]
        for y, x in ((0, 0), (7, 7), (2, 5)):  # corners on corners
            top, left = y * (side - 1) / 7, x * (side - 1) / 7
            (i, down), (j, right) = ((int(value), value - int(value)) for value in (top, left))
            expected = sum(
                weight * level[0, :, min(i + a, side - 1), min(j + b, side - 1)]
                for a, b, weight in (
                    (0, 0, (1 - down) * (1 - right)), (1, 0, down * (1 - right)),
                    (0, 1, (1 - down) * right), (1, 1, down * right),
                )
            )  # fmt: skip
            torch.testing.assert_close(part[y, x], expected, rtol=1e-4, atol=1e-5)
        start += channels


def test_noise_is_as_large_as_the_token():
    torch.manual_seed(0)
    tokens = torch.tensor([3.0, 4.0]).repeat(1, 20_000, 1) * torch.tensor([1.0, 10.0]).repeat(10_000)[None, :, None]
    noise = add_noise(tokens) - tokens
    for start, length in ((0, 5.0), (1, 50.0)):
        assert noise[:, start::2].std().item() == pytest.approx(20 * length / 2, rel=0.02)


def test_noise_is_that_of_a_loop_in_float64():
    tokens = torch.randn(2, 3, 5)
    torch.manual_seed(1)
    found = add_noise(tokens)
    torch.manual_seed(1)
    normal = torch.randn(2, 3, 5).double().tolist()
    for image, rows in enumerate(tokens.double().tolist()):
        for place, token in enumerate(rows):
            length = math.sqrt(sum(value**2 for value in token))
            expected = [x + 20 * length / 5 * z for x, z in zip(token, normal[image][place], strict=True)]
            assert found[image, place].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_layers_start_as_copies_in_what_is_not_linear(model):
    first, second = model.restorer.decoder
    assert torch.equal(first.queries, second.queries)
    assert torch.equal(first.to_input.in_proj_weight, second.to_input.in_proj_weight)
    assert not torch.equal(first.mlp[0].weight, second.mlp[0].weight)
    assert not torch.equal(first.to_input.out_proj.weight, second.to_input.out_proj.weight)


def test_a_place_sees_none_of_the_seven_by_seven_around_it():
    hidden = neighbourhood((14, 14))
    assert hidden.sum(dim=1).max() == 49
    assert hidden[0].sum() == 16
    assert not hidden.all(dim=1).any()


def test_the_papers_size():
    with torch.device("meta"):
        model = UniADModel("tf_efficientnet_b4", (224, 224))
    assert model.into.in_features == 24 + 32 + 56 + 160
    assert sum(parameter.numel() for parameter in model.trained) / 1e6 == pytest.approx(7.7, abs=0.05)


def test_the_encoder_is_frozen_and_the_learning_rate_drops_once(model):
    assert not model.train().encoder.training
    optimizers = RestorationStage(model, {"epochs": 1000, "lr": 1e-4}).optimizers()
    trained = {id(parameter) for group in optimizers["optimizer"].param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    (rate,) = optimizers["lr_scheduler"]["scheduler"].lr_lambdas
    assert (rate(799), rate(800)) == (1, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, r"no features of falling resolution: .*resnet18"),
        ({"image_size": 120}, r"image_size=\(120, 120\) must be a multiple of 16, at least 128"),
        ({"image_size": 112}, "at least 128"),
        ({"score": "sum"}, "score='sum' must be one of 'mean', 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniAD(**{"backbone": ENCODER, "pre_trained": False, **arguments})
    with pytest.raises(ValueError, match=r"Images of \(64, 64\) reach a model for image_size=\(128, 128\)"):
        UniADModel(ENCODER, (128, 128)).tokens(torch.zeros(1, 3, 64, 64))
