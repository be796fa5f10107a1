"""What one step of each stage computes and changes, and the novelty score."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from anomalib_defend.models.defend import torch_model
from anomalib_defend.models.defend.torch_model import DefendModel, TeacherOutput
from anomalib_defend.nn import vit as vits
from rounding import rounding

TINY = "vit_digits_patch8_96"  # 6 blocks of width 96, patches of 8 x 8 pixels
SIZE = (32, 48)
PATCHES = 24
PIXEL = {"distill_layers": 5, "distill_loss": "smooth_l1", "feature_norm": "layer_norm"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(**kwargs):
    model = DefendModel(**{"backbone": TINY, "image_size": SIZE, **kwargs})
    model.reset_student()
    return model


@pytest.fixture
def images():
    return torch.randn(4, 3, *SIZE)


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(model, before):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def train(model, step, steps=1, lr=1e-3):
    """Train every parameter that asks for a gradient, those of the other stage too, as `Defend` does."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        step().backward()
        optimizer.step()


def token_counts(vit):
    """Lengths of the sequences that the first block sees from now on."""
    counts = []
    vit.blocks[0].register_forward_hook(lambda _module, inputs, _output: counts.append(inputs[0].shape[1]))
    return counts


# ----------------------------------------------------------------------------------------------------------- stage 1


def test_stage_1_changes_exactly_the_teachers_last_blocks_head_and_prototypes(images):
    model = build()
    before = state_of(model)
    train(model, lambda: model.dense_step(images)[0])
    expected = {key for key in before if key.startswith(("teacher.blocks.4.", "teacher.blocks.5.", "head."))}
    assert changed(model, before) == expected


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_the_gradient_of_stage_1_reaches_the_trainable_parameters_and_no_others(images, blocks):
    model = build(num_tuned_blocks=blocks)
    model.dense_step(images)[0].backward()
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    tuned = tuple(f"teacher.blocks.{index}." for index in range(6 - blocks, 6))
    assert reached == {key for key, _ in model.named_parameters() if key.startswith((*tuned, "head."))}
    assert all(model.get_parameter(key).grad.any() for key in reached)


def test_without_tuned_blocks_the_teacher_is_frozen():
    model = build(num_tuned_blocks=0)
    assert not any(parameter.requires_grad for parameter in (*model.teacher.parameters(), *model.head.parameters()))


@pytest.mark.parametrize("hard", [True, False])
def test_targets_assign_every_patch_to_balanced_prototypes(images, hard):
    model = build(num_prototypes=3, hard_targets=hard)
    model.head.normalize_prototypes()
    targets, usage = model.dense_targets(images)
    assert 1 - 1e-5 <= usage <= 3 + 1e-5
    assert not targets.requires_grad
    if hard:
        assert targets.shape == (4, 4, 6)
        assert set(targets.unique().tolist()) == {0, 1, 2}
    else:
        assert targets.shape == (4, 4, 6, 3)
        torch.testing.assert_close(targets.sum(-1), torch.ones(4, 4, 6))
        assert (targets.sum((0, 1, 2)) - 32).abs().max() < 4  # three iterations are not the end


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("crop_size", [None, (24, 16)])
def test_crops_are_compared_with_their_own_targets(images, monkeypatch, hard, crop_size):
    model = build(num_crops=3, num_prototypes=4, hard_targets=hard, crop_size=crop_size, random_view=False)
    size = crop_size or (16, 24)
    boxes, seen = [], []
    sample_boxes = torch_model.sample_boxes

    def drawn(*args, **kwargs):
        boxes.append(sample_boxes(*args, **kwargs))
        return boxes[-1]

    def compared(similarities, targets):
        seen.append((similarities, targets))
        return dense_loss(similarities, targets)

    dense_loss = torch_model.dense_loss
    monkeypatch.setattr(torch_model, "sample_boxes", drawn)
    monkeypatch.setattr(torch_model, "dense_loss", compared)
    loss, _ = model.dense_step(images)
    assert loss.shape == ()
    assert loss.isfinite()
    similarities, targets = seen[0]
    assert similarities.shape == (12, *size, 4)
    maps, _ = model.dense_targets(images)
    for crop, (top, left, h, w) in enumerate(boxes[-1].tolist()):
        block = maps[crop // 3, top : top + h, left : left + w]
        channels = block.movedim(-1, 0)[None] if not hard else block[None, None].float()
        expected = F.interpolate(channels, size=size, mode="nearest-exact")[0]
        torch.testing.assert_close(targets[crop].float(), expected[0] if hard else expected.movedim(0, -1))


def test_similarities_are_cosines_and_prototypes_are_normalised_before_the_step(images, monkeypatch):
    model = build()
    seen = []
    monkeypatch.setattr(torch_model, "dense_loss", lambda similarities, _targets: seen.append(similarities) or 0)
    model.dense_step(images)
    torch.testing.assert_close(model.head.prototypes.norm(dim=1), torch.ones(5))
    assert seen[0].abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("random_view", [True, False])
def test_the_view_is_random_or_the_whole_image(images, random_view):
    model = build(random_view=random_view)
    views, targets = [], model.dense_targets
    model.dense_targets = lambda view: views.append(view) or targets(view)
    model.dense_step(images)
    model.dense_step(images)
    assert all(view.shape == images.shape for view in views)
    assert all(torch.equal(view, images) for view in views) is not random_view
    assert torch.equal(*views) is not random_view


def test_stage_1_learns(images):
    model = build(random_view=False)
    losses = []

    def step():
        losses.append(model.dense_step(images)[0])
        return losses[-1]

    train(model, step, steps=12)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


# ----------------------------------------------------------------------------------------------------------- stage 2


@pytest.mark.parametrize("options", [{}, {"masking": "random"}, {"masking": "none"}, PIXEL, {"feature_norm": "none"}])
def test_stage_2_leaves_the_teacher_alone_and_changes_all_of_the_student(images, options):
    model = build(**options)
    before = state_of(model)
    train(model, lambda: model.distill_step(images))
    names = {f"student.{key}" for key, _ in model.student.named_parameters() if key != "pos_embed"}
    names |= {f"student_heads.{key}" for key, _ in model.student_heads.named_parameters()}
    if options == PIXEL:
        names -= {"student.norm.weight", "student.norm.bias"}  # the linear heads take the un-normalised tokens
    assert changed(model, before) == names


@pytest.mark.parametrize("options", [{}, PIXEL])
@pytest.mark.parametrize("backbone", [TINY, "vit_wee_patch16_reg1_gap_256"])
def test_every_trainable_parameter_of_the_student_gets_a_gradient(options, backbone):
    # DDP stops at parameters that take no part in the loss
    model = build(backbone=backbone, image_size=(48, 48), masking="random", **options)
    model.distill_step(torch.randn(2, 3, 48, 48)).backward()
    parts = [*model.student.named_parameters(), *model.student_heads.named_parameters()]
    assert [key for key, parameter in parts if parameter.requires_grad and parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, PATCHES // 2),
        ({"masking": "random"}, PATCHES // 2),
        ({"masking": "none"}, PATCHES),
        ({"mask_ratio": 0}, PATCHES),
        ({"mask_ratio": 0.75}, PATCHES // 4),
        (PIXEL, PATCHES // 2),
    ],
)
def test_the_student_sees_the_kept_patches_and_the_prefix_tokens_the_teacher_all(images, options, count):
    model = build(**options)
    student, teacher = token_counts(model.student), token_counts(model.teacher)
    model.distill_step(images)
    assert student == [count + 1]
    assert teacher == [PATCHES + 1]  # one pass for features and attention


def test_prefix_tokens_are_never_masked():
    model = build(backbone="vit_small_patch14_reg4_dinov2", image_size=(56, 56))
    student = token_counts(model.student)
    model.distill_step(torch.randn(1, 3, 56, 56))
    assert student == [8 + 5]


@pytest.mark.parametrize(("masking", "follows"), [("guided", True), ("random", False)])
def test_guided_masking_follows_the_teachers_attention(images, masking, follows):
    model = build(masking=masking)
    teacher = model.teacher_output(images, attend=follows)
    assert (teacher.attention is not None) is follows
    if follows:
        _, attention = vits.patch_tokens_and_attention(model.teacher, images)
        assert torch.equal(teacher.attention, attention)
    peaked = torch.full((4, PATCHES), 1e-12)
    for image in range(4):
        peaked[image, image::2] = 1
    attention = peaked if follows else None
    keep = model.sample_keep(TeacherOutput(teacher.layers, attention))
    assert keep.shape == (4, 12)
    seen = peaked.gather(1, keep).mean().item()
    assert seen > 0.9 if follows else seen < 0.75


def test_the_loss_is_the_mean_over_kept_patches_and_channels(images):
    model = build()
    keep = torch.stack([torch.randperm(PATCHES)[:12].sort().values for _ in images])
    model.sample_keep = lambda _teacher: keep
    model.student.eval()  # no drop path
    teacher = F.normalize(vits.patch_tokens(model.teacher, images)[0], dim=-1)
    student = F.normalize(vits.patch_tokens(model.student, images, keep=keep)[0], dim=-1)
    kept = torch.stack([teacher[image, keep[image]] for image in range(4)])
    torch.testing.assert_close(model.distill_step(images), (student - kept).square().mean())


def test_no_gradient_reaches_the_teacher_or_the_head_in_stage_2(images):
    model = build()
    model.distill_step(images).backward()
    assert all(parameter.grad is None for part in (model.teacher, model.head) for parameter in part.parameters())
    assert model.student.pos_embed.grad is None


def test_an_encoder_without_cls_falls_back_to_random_masking_with_a_warning(caplog):
    model = build(backbone="vit_wee_patch16_reg1_gap_256", image_size=(64, 64))
    assert model.masking == "random"
    assert "vit_wee_patch16_reg1_gap_256 has no [CLS] token" in caplog.text
    student = token_counts(model.student)
    assert model.distill_step(torch.randn(2, 3, 64, 64)).isfinite()
    assert student == [8 + 1]


def test_no_warning_where_there_is_nothing_to_warn_of(caplog):
    build()
    build(backbone="vit_wee_patch16_reg1_gap_256", image_size=(64, 64), masking="none")
    assert not caplog.text


# ------------------------------------------------------------------------------------------------------------- score


def test_the_score_is_twice_the_mean_of_one_minus_the_cosine(images):
    model = build().eval()
    tokens = [vits.patch_tokens(vit, images)[0] for vit in (model.teacher, model.student)]
    distances = 2 * (1 - F.cosine_similarity(*tokens, dim=-1))
    predictions = model(images)
    assert predictions.pred_score.shape == (4,)
    assert not predictions.pred_score.requires_grad
    torch.testing.assert_close(predictions.pred_score, distances.mean(1))
    assert predictions.anomaly_map.shape == (4, 1, *SIZE)
    expected = F.interpolate(distances.reshape(4, 1, 4, 6), size=SIZE, mode="bilinear")
    torch.testing.assert_close(predictions.anomaly_map, expected)


@pytest.mark.parametrize("options", [{}, {"distill_layers": 3}])
@pytest.mark.parametrize("block", [None, 2])
@torch.no_grad()
def test_the_attended_score_is_the_mean_weighted_by_the_attention(images, options, block):
    """In loops and float64, with one pass of the teacher."""
    model = build(score="attended_distance", attention_block=block, **options).eval()
    layers = options.get("distill_layers", 1)
    teachers, attention = vits.patch_tokens_and_attention(
        model.teacher, images, num_layers=layers, attention_block=block
    )
    students = vits.patch_tokens(model.student, images, num_layers=layers)
    maps, scores = torch.zeros(4, PATCHES, dtype=torch.float64), []
    for image in range(4):
        weights = [weight / sum(attention[image].tolist()) for weight in attention[image].tolist()]
        score = 0.0
        for patch in range(PATCHES):
            distance = 0.0
            for teacher, student in zip(teachers, students, strict=True):
                first, second = teacher[image, patch].double(), student[image, patch].double()
                distance += float((first / first.norm() - second / second.norm()).square().sum()) / layers
            score += weights[patch] * distance
            maps[image, patch] = PATCHES * weights[patch] * distance
        scores.append(score)
    seen = token_counts(model.teacher)
    predictions = model(images)
    assert seen == [PATCHES + 1]
    torch.testing.assert_close(predictions.pred_score, torch.tensor(scores), rtol=1e-5, atol=1e-6)
    expected = F.interpolate(maps.reshape(4, 1, 4, 6), size=SIZE, mode="bilinear").float()
    torch.testing.assert_close(predictions.anomaly_map, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.mean(dim=1).float(), predictions.pred_score, rtol=1e-5, atol=1e-6)


def test_the_block_guides_the_mask_and_the_last_one_is_the_default(images):
    attention = {block: build(attention_block=block).teacher_output(images, attend=True).attention for block in (2, 6)}
    model = build()
    for block in (2, 6):
        _, expected = vits.patch_tokens_and_attention(model.teacher, images, attention_block=block)
        other = build(attention_block=block)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.teacher_output(images, attend=True).attention, expected)
    assert not torch.equal(attention[2], attention[6])
    assert torch.equal(model.teacher_output(images, attend=True).attention, expected)
    seen = []
    other.sample_keep = lambda teacher: seen.append(teacher.attention)
    other.distill_step(images)
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("options", [{}, PIXEL, {"score": "attended_distance", "attention_block": 5}])
def test_scores_do_not_depend_on_the_batch(images, options):
    model = build(**options).eval()
    whole = model(images)
    order, atol = torch.tensor([2, 0, 3, 1]), rounding(12, largest=float(whole.pred_score.max()))  # layers
    torch.testing.assert_close(model(images[order]).pred_score, whole.pred_score[order], atol=atol, rtol=0)
    alone = torch.cat([model(image[None]).pred_score for image in images])
    torch.testing.assert_close(alone, whole.pred_score, atol=atol, rtol=0)
    assert torch.equal(model(images).pred_score, whole.pred_score)  # nothing is drawn


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_masked_when_scoring(images, training):
    model = build().train(training)
    student = token_counts(model.student)
    model(images)
    assert student == [PATCHES + 1]


def test_a_student_that_equals_the_teacher_scores_zero(images):
    model = build().eval()
    model.student.load_state_dict(model.teacher.state_dict())
    torch.testing.assert_close(model(images).pred_score, torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"masking": "random"}, PIXEL, {"feature_norm": "none"}])
def test_what_the_student_was_trained_on_scores_lower_than_before_and_than_anything_else(images, options):
    model = build(**options)
    others = torch.rand(4, 3, *SIZE) * 4
    before = model.eval()(images).pred_score
    model.train()
    model.teacher.eval()
    train(model, lambda: model.distill_step(images), steps=30, lr=2e-3)
    after = model.eval()(images).pred_score
    assert (after < 0.8 * before).all()
    assert after.max() < model(others).pred_score.min()


def test_the_pixel_variant_averages_layers_and_normalises_the_teacher_alone(images):
    model = build(**PIXEL).eval()
    assert len(model.student_heads) == 5
    teachers = vits.patch_tokens(model.teacher, images, num_layers=5, final_norm=False)
    students = vits.patch_tokens(model.student, images, num_layers=5, final_norm=False)
    total = torch.zeros(4)
    for head, teacher, student in zip(model.student_heads, teachers, students, strict=True):
        target = F.layer_norm(teacher, teacher.shape[-1:])
        total += F.smooth_l1_loss(head(student), target, reduction="none").sum(-1).mean(1) / 5
    torch.testing.assert_close(model(images).pred_score, total, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ construction


def test_reset_follows_the_seed_and_leaves_the_teacher_alone():
    model = build()
    states = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        model.reset_student()
        states.append(state_of(model))
    assert changed(model, states[0]) == set()
    differing = changed(model, states[1])
    assert {"student.blocks.0.attn.qkv.weight", "head.prototypes", "head.mlp.0.weight"} <= differing
    assert not any(key.startswith("teacher.") for key in differing)


@pytest.mark.parametrize(
    ("backbone", "size", "crop"),
    [
        (TINY, (96, 96), (40, 40)),
        ("vit_tiny_patch16_224", (224, 224), (96, 96)),
        ("vit_tiny_patch16_224", (32, 128), (16, 48)),
        ("vit_tiny_patch16_224", (16, 16), (16, 16)),
    ],
)
def test_crops_are_the_multiple_of_the_patch_size_nearest_to_three_sevenths(backbone, size, crop):
    assert build(backbone=backbone, image_size=size).crop_size == crop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (20, 16)}, r"crop_size=\(20, 16\) must be a multiple of the patch size \(8, 8\)"),
        ({"num_tuned_blocks": 7}, r"num_tuned_blocks=7, .* has 6 blocks"),
        ({"num_tuned_blocks": -1}, "num_tuned_blocks=-1"),
        ({"distill_layers": 0}, "distill_layers=0"),
        ({"distill_layers": 7}, "distill_layers=7"),
        (
            {"attention_block": 7},
            f"attention_block=7, but '{TINY}' has 6 blocks: give 1 to 6",
        ),
        ({"attention_block": 0}, "attention_block=0"),
        (
            {"backbone": "vit_wee_patch16_reg1_gap_256", "image_size": (64, 64), "score": "attended_distance"},
            r"score='attended_distance', but 'vit_wee_patch16_reg1_gap_256' has no \[CLS\] token .* use 'distance'",
        ),
    ],
)
def test_arguments_that_do_not_fit_the_encoder_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"masking": masking, "feature_norm": norm, "distill_loss": loss, "distill_layers": layers}
        for (masking, norm), (loss, layers) in itertools.product(
            [("guided", "l2"), ("none", "none"), ("random", "layer_norm")], [("mse", 2), ("smooth_l1", 1)]
        )
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options_combine(images, options):
    model = build(**options)
    loss = model.distill_step(images)
    assert loss.isfinite()
    loss.backward()
    assert model.eval()(images).pred_score.isfinite().all()
