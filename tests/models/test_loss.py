"""The losses of both stages (``models.defend.loss``: pure functions)."""

import pytest
import torch
import torch.nn.functional as F

from anomalib_defend.models.defend.loss import dense_loss
from anomalib_defend.nn.distance import feature_distance, normalize_features


def test_dense_loss_equals_naive_cross_entropy():
    torch.manual_seed(0)
    similarities = torch.rand(3, 4, 6, 5) * 2 - 1
    labels = torch.randint(0, 5, (3, 4, 6))
    total = 0.0
    for crop in range(3):
        for row in range(4):
            for column in range(6):
                logits = similarities[crop, row, column].double() / 0.1
                total += -(logits - logits.exp().sum().log())[labels[crop, row, column]].item()
    assert dense_loss(similarities, labels).item() == pytest.approx(total / 72, rel=1e-5)


def test_hard_labels_are_soft_assignments_of_one():
    similarities, labels = torch.rand(3, 4, 6, 5), torch.randint(0, 5, (3, 4, 6))
    soft = F.one_hot(labels, 5).float()
    torch.testing.assert_close(dense_loss(similarities, soft), dense_loss(similarities, labels))


def test_soft_assignments_mix_the_losses_of_the_labels():
    similarities, first, second = torch.rand(2, 4, 4, 3), torch.zeros(2, 4, 4).long(), torch.full((2, 4, 4), 2)
    soft = 0.3 * F.one_hot(first, 3) + 0.7 * F.one_hot(second, 3)
    expected = 0.3 * dense_loss(similarities, first) + 0.7 * dense_loss(similarities, second)
    torch.testing.assert_close(dense_loss(similarities, soft), expected)


def test_confident_right_predictions_cost_nothing():
    labels = torch.randint(0, 4, (2, 3, 3))
    right = F.one_hot(labels, 4) * 5.0
    assert dense_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert dense_loss(-right, labels).item() > 1


def test_dense_loss_of_half_precision_is_computed_in_float32():
    loss = dense_loss(torch.rand(2, 4, 4, 3).half(), torch.zeros(2, 4, 4).long())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
@pytest.mark.parametrize("norm", ["l2", "layer_norm", "none"])
def test_identical_features_have_no_distance(loss, norm):
    tokens = normalize_features(torch.randn(2, 5, 8), norm)
    assert torch.equal(feature_distance(tokens, tokens.clone(), loss), torch.zeros(2, 5))


def test_l2_features_have_unit_length_and_their_distance_is_a_cosine():
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    normalised = [normalize_features(10 * tokens, "l2") for tokens in (student, teacher)]
    torch.testing.assert_close(normalised[0].norm(dim=-1), torch.ones(2, 5))
    expected = 2 * (1 - F.cosine_similarity(student, teacher, dim=-1))
    torch.testing.assert_close(feature_distance(*normalised, "mse"), expected, atol=1e-5, rtol=1e-5)  # type: ignore[call-arg]


def test_layer_norm_has_no_affine_part():
    tokens = normalize_features(3 + 7 * torch.randn(2, 5, 64), "layer_norm")
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.std(-1, unbiased=False), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_none_leaves_features_as_they_are_but_for_float32():
    tokens = torch.randn(2, 5, 8).bfloat16()
    assert torch.equal(normalize_features(tokens, "none"), tokens.float())


def test_smooth_l1_is_quadratic_near_zero_and_linear_far_away():
    teacher = torch.zeros(3, 2)
    student = torch.tensor([[0.5, 0.0], [3.0, 0.0], [3.0, -0.5]])
    assert feature_distance(student, teacher, "smooth_l1").tolist() == pytest.approx([0.125, 2.5, 2.625])


def test_the_distance_is_float32_under_autocast():
    student, teacher = torch.randn(2, 5, 8).bfloat16(), torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = feature_distance(student, teacher, "mse")
    assert distance.dtype == torch.float32
    assert torch.equal(distance, (student.float() - teacher).square().sum(-1))
