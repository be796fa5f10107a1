"""Transformaly: loss, densities and map, each by loops over images (``test_every_model.py`` has the rest)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from every_model import VIT
from torch import nn

from anomalib_defend import Transformaly
from anomalib_defend.models.transformaly import torch_model
from anomalib_defend.models.transformaly.torch_model import TransformalyModel, TwoGaussians
from anomalib_defend.nn.normality import Gaussian
from encoders import MINIATURE


@pytest.fixture
def model() -> TransformalyModel:
    torch.manual_seed(0)
    return TransformalyModel(MINIATURE, (32, 32)).eval()


def blocks_of(model: TransformalyModel, image: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each block what teacher and student make of the teacher's input, [tokens, D] in float64."""
    teacher = model.teacher.double()
    x = teacher.patch_embed(image[None].double())
    x = torch.cat([teacher.cls_token, x], dim=1) + teacher.pos_embed
    outputs = []
    for block, student in zip(teacher.blocks, model.students.double(), strict=True):
        outputs.append((block(x)[0].detach().numpy(), student(x)[0].detach().numpy()))
        x = block(x)
    model.float()
    return outputs


def test_the_loss_is_the_mean_over_blocks_tokens_and_channels(model):
    images = torch.randn(3, 3, 32, 32)
    loss = model.imitation_loss(images).item()
    errors = []
    for image in images:
        for teacher, student in blocks_of(model, image):
            for target, output in zip(teacher, student, strict=True):
                errors.append(sum((b - a) ** 2 for a, b in zip(target, output, strict=True)) / len(target))
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_no_gradient_crosses_a_block_nor_reaches_the_teacher(model):
    """What the second student does changes nothing for the first."""
    images, gradients = torch.randn(2, 3, 32, 32), []
    for weight in (0.0, 1.0):
        nn.init.constant_(model.students[1].mlp.fc2.weight, weight)
        model.zero_grad()
        model.train().imitation_loss(images).backward()
        gradients.append([parameter.grad.clone() for parameter in model.students[0].parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert any(gradient.any() for gradient in gradients[0])
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Negative log density by its definition."""
    difference = x - mean
    distance = difference @ np.linalg.inv(covariance) @ difference
    return 0.5 * distance + 0.5 * math.log(np.linalg.det(covariance)) + 0.5 * len(x) * math.log(2 * math.pi)


def covariance_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.sum(list(rows), axis=0) / len(rows)
    return mean, np.sum([np.outer(row - mean, row - mean) for row in rows], axis=0) / len(rows)


@pytest.mark.parametrize("unscored", [2, 1])
def test_score_and_map_are_those_of_loops_in_float64(unscored, monkeypatch):
    """Errors of all blocks but the first ones, and principal components of [CLS], each under its own Gaussian."""
    monkeypatch.setattr(torch_model, "UNSCORED", unscored)
    torch.manual_seed(0)
    model = TransformalyModel(MINIATURE, (32, 32)).eval()
    images, novel = torch.randn(12, 3, 32, 32), torch.randn(3, 3, 32, 32)
    model.normality.fit(model.encode(images))
    found = model(novel)

    def look(image):
        outputs = blocks_of(model, image)[unscored:]
        errors = np.array([((student - teacher) ** 2).mean() for teacher, student in outputs])
        patches = np.array([((student - teacher)[1:] ** 2).mean(axis=1) for teacher, student in outputs])
        norm, last = model.teacher.norm, outputs[-1][0][0]
        cls = (last - last.mean()) / math.sqrt(last.var() + norm.eps)
        return errors, cls * norm.weight.detach().numpy() + norm.bias.detach().numpy(), patches

    errors, features, _ = (np.array(part) for part in zip(*map(look, images), strict=True))
    mean, covariance = covariance_of(errors)
    of_features, spread = covariance_of(features)
    variances, directions = np.linalg.eigh(spread)
    order = np.argsort(-variances)
    share = np.cumsum(variances[order]) / variances.sum()
    needed = next(index + 1 for index in range(len(share)) if share[index] >= 0.9)
    kept = order[: needed - 1]
    assert 1 < len(kept) < len(order)
    scores, maps = [], []
    for image in novel:
        error, feature, patches = look(image)
        whitened = (feature - of_features) @ directions[:, kept] / np.sqrt(variances[kept])
        n_1 = density(error, mean, covariance + 1e-6 * np.eye(len(error)))
        n_2 = density(whitened, np.zeros(len(kept)), (1 + 1e-6) * np.eye(len(kept)))
        scores.append((n_1, n_2))
        maps.append(sum(patches[block] / math.sqrt(covariance[block, block]) for block in range(len(error))))
    expected = torch.tensor(scores)
    torch.testing.assert_close(found.pred_score.double(), expected.sum(dim=1), rtol=1e-5, atol=1e-5)
    grid = torch.tensor(np.array(maps)).reshape(3, 1, 4, 4)
    torch.testing.assert_close(
        found.anomaly_map.double(), F.interpolate(grid, (32, 32), mode="bilinear"), rtol=1e-5, atol=1e-5
    )
    for name, column in (("errors", 0), ("features", 1)):
        model.normality.score = name
        torch.testing.assert_close(model(novel).pred_score.double(), expected[:, column], rtol=1e-5, atol=1e-5)


def test_an_unusually_small_error_is_novel_too():
    normality = TwoGaussians(1, 2, "errors")
    torch.manual_seed(0)
    normality.fit(torch.cat([1 + 0.1 * torch.randn(50, 1), torch.randn(50, 2)], dim=1))
    small, usual, large = normality(torch.tensor([[0.5, 0, 0], [1.0, 0, 0], [1.5, 0, 0]]))
    assert small > usual + 5
    assert large > usual + 5


def test_at_least_one_principal_component_is_kept():
    features = torch.randn(20, 4) * torch.tensor([10.0, 0.1, 0.1, 0.1])
    gaussian = Gaussian(4, 0.9)
    gaussian.fit(features)
    assert gaussian.whitening.shape == (4, 1)
    gaussian.fit(features[:1])  # no variance at all
    assert gaussian(features).isfinite().all()


def test_what_is_not_finite_has_no_gaussian():
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        Gaussian(2).fit(torch.tensor([[0.0, torch.nan]]))


def test_students_begin_as_the_paper_has_it(model):
    model.reset_students()
    width = model.teacher.embed_dim
    for part in model.students[0].attn.qkv.weight.chunk(3):
        assert part.abs().max() <= math.sqrt(3 / width)
        assert part.abs().max() > 0.9 * math.sqrt(3 / width)
    assert 0 < model.students[0].mlp.fc1.bias.abs().max() < 1e-5
    assert not torch.equal(model.students[0].attn.proj.weight, model.teacher.blocks[0].attn.proj.weight)


def test_dropout_is_the_students_and_the_teachers(model):
    """As published; without it, which is the default, the teacher stays in evaluation mode."""
    assert not model.train().teacher.training
    noisy = TransformalyModel(MINIATURE, (32, 32), dropout=0.1).train()
    assert noisy.teacher.training
    assert not noisy.eval().teacher.training
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(noisy.encode(images), noisy.train().encode(images))


def test_another_encoder_is_refused_with_what_works():
    with pytest.raises(ValueError, match=r"'resnet18' .*ViT"):
        Transformaly(backbone="resnet18", pre_trained=False)
    with pytest.raises(ValueError, match="score='error' must be one of 'both', 'errors', 'features'"):
        Transformaly(**VIT, score="error")
    with pytest.raises(ValueError, match=r"Images of \(16, 16\) reach a model for image_size=\(32, 32\)"):
        TransformalyModel(MINIATURE, (32, 32)).encode(torch.zeros(1, 3, 16, 16))
