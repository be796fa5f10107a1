"""Patch tokens, attention and construction of timm's ViTs; from tokens to maps."""

import math

import pytest
import torch
from timm.layers import LayerScale
from torch import nn

from anomalib_defend.nn import vit as vits
from anomalib_defend.nn.distance import l2_normalize
from anomalib_defend.nn.encoder import DataConfig, data_config
from anomalib_defend.nn.score import anomaly_map

TINY = "vit_digits_patch8_96"
REGISTERS = "vit_small_patch14_reg4_dinov2"  # patch 14, [CLS] and 4 registers without position embedding
MEAN_POOLED = "vit_wee_patch16_reg1_gap_256"  # no [CLS], the final norm stands behind the pooling
ENCODERS = [
    (TINY, (64, 48)),
    ("vit_tiny_patch16_224", (64, 96)),
    ("deit_tiny_patch16_224", (96, 96)),
    ("deit_tiny_distilled_patch16_224", (64, 64)),
    ("deit3_small_patch16_224", (48, 64)),  # [CLS] without position embedding
    (REGISTERS, (56, 70)),
    (MEAN_POOLED, (64, 64)),
]


def build(name, size):
    """A ViT whose every parameter matters: fresh norms and layer scales would hide where they are applied."""
    vit = vits.create_vit(name, size).eval()
    with torch.no_grad():
        for module in vit.modules():
            if isinstance(module, LayerScale):
                module.gamma.fill_(1)
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build(TINY, (64, 48))


@pytest.mark.parametrize(("name", "size"), ENCODERS)
def test_patch_tokens_equal_timms(name, size):
    vit = build(name, size)
    images = torch.randn(2, 3, *size)
    tokens = vits.patch_tokens(vit, images)
    assert len(tokens) == 1
    patch = vit.patch_embed.patch_size
    assert tokens[0].shape == (2, size[0] // patch[0] * size[1] // patch[1], vit.embed_dim)
    # timm applies fc_norm behind the pooling
    expected = vit.fc_norm(vit.forward_features(images))[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(tokens[0], expected, atol=1e-5, rtol=1e-4)
    # keeping all patches is the same as dropping none
    count = tokens[0].shape[1]
    keep = torch.arange(count).expand(2, -1)
    torch.testing.assert_close(vits.patch_tokens(vit, images, keep=keep)[0], tokens[0], atol=1e-5, rtol=1e-4)
    # the attention comes from the same pass
    if vits.has_cls_attention(vit):
        layers, attention = vits.patch_tokens_and_attention(vit, images)
        torch.testing.assert_close(layers[0], tokens[0])
        assert attention.shape == (2, count)


def test_tokens_of_several_layers_equal_timms_intermediates(tiny):
    images = torch.randn(2, 3, 64, 48)
    for norm in (True, False):
        expected = tiny.forward_intermediates(
            images, indices=3, norm=norm, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=False
        )
        layers = vits.patch_tokens(tiny, images, num_layers=3, final_norm=norm)
        assert len(layers) == 3
        for layer, reference in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "size"), [(TINY, (96, 96)), (REGISTERS, (70, 70))])
def test_crops_get_an_interpolated_position_embedding(name, size):
    patch = vits.create_vit(name, size).patch_embed.patch_size[0]
    vit, crops = build(name, size), torch.randn(2, 3, 3 * patch, 2 * patch)
    own = vits.patch_tokens(vit, crops)[0]
    assert own.shape[1] == 6
    vit.set_input_size(img_size=(3 * patch, 2 * patch))  # timm's own interpolation
    torch.testing.assert_close(own, vit.forward_features(crops)[:, vit.num_prefix_tokens :], atol=1e-5, rtol=1e-4)


def test_dropped_patches_are_removed_and_not_hidden(tiny):
    images = torch.randn(2, 3, 64, 48)
    keep = torch.tensor([[0, 5, 17, 40], [3, 4, 5, 47]])
    lengths = []
    handle = tiny.blocks[2].register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[0].shape[1]))
    before = vits.patch_tokens(tiny, images, keep=keep)[0]
    handle.remove()
    assert lengths == [4 + tiny.num_prefix_tokens]
    assert before.shape == (2, 4, tiny.embed_dim)
    # what a dropped patch shows makes no difference; what a kept one shows does
    changed = images.clone()
    changed[0, :, 0:8, 8:16] = 9  # patch 1
    torch.testing.assert_close(vits.patch_tokens(tiny, changed, keep=keep)[0], before)
    changed[0, :, 0:8, 0:8] = 9  # patch 0
    assert not torch.allclose(vits.patch_tokens(tiny, changed, keep=keep)[0][0], before[0], atol=1e-3)


@pytest.mark.parametrize(("name", "size"), ENCODERS)
def test_kept_patches_are_embedded_as_if_all_were(name, size):
    vit, images = build(name, size).requires_grad_(True), torch.randn(3, 3, *size)
    prefix, count = vit.num_prefix_tokens, vit.patch_embed.num_patches
    keep = torch.rand(3, count).topk(count // 2).indices
    whole, own = vits.embed(vit, images), vits.embed(vit, images, keep)
    torch.testing.assert_close(own[:, :prefix], whole[:, :prefix])
    kept = whole[:, prefix:].gather(1, keep[..., None].expand(-1, -1, vit.embed_dim))
    torch.testing.assert_close(own[:, prefix:], kept, atol=1e-5, rtol=1e-4)
    # and so is the gradient
    weights = [vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, vit.pos_embed]
    direction = torch.randn_like(kept)
    expected = torch.autograd.grad((kept * direction).sum(), weights)
    for one, other in zip(torch.autograd.grad((own[:, prefix:] * direction).sum(), weights), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_attention_in_bfloat16_on_a_cpu_is_plain_only_where_a_gradient_is_asked_for(tiny, monkeypatch):
    images, calls = torch.randn(2, 3, 64, 48), []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **kw: calls.append(1) or fused(*args, **kw)
    )
    expected = vits.patch_tokens(tiny, images)[0]
    for autocast, gradient, plain in ((True, True, True), (True, False, False), (False, True, False)):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(gradient):
            tokens = vits.patch_tokens(tiny, images)[0]
        assert (calls == []) is plain
        torch.testing.assert_close(tokens, expected, atol=0.15, rtol=0.1, check_dtype=False)


def test_the_order_of_the_kept_patches_does_not_matter(tiny):
    images, keep = torch.randn(1, 3, 64, 48), torch.tensor([[2, 9, 30, 31]])
    order = torch.tensor([3, 0, 2, 1])
    expected = vits.patch_tokens(tiny, images, keep=keep)[0][:, order]
    torch.testing.assert_close(vits.patch_tokens(tiny, images, keep=keep[:, order])[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "block"),
    [
        (TINY, (64, 48), None),
        (TINY, (64, 48), 1),
        (TINY, (64, 48), 5),
        ("deit_tiny_distilled_patch16_224", (64, 64), None),
        (REGISTERS, (56, 56), 12),
    ],
)
def test_attention_is_the_cls_row_of_the_full_attention_matrix(name, size, block):
    vit, images = build(name, size), torch.randn(2, 3, *size)
    inputs = []
    module = vit.blocks[-1 if block is None else block - 1].attn
    handle = module.register_forward_hook(lambda _m, args, _o: inputs.append(args[0]))
    layers, attention = vits.patch_tokens_and_attention(vit, images, attention_block=block)
    handle.remove()
    assert torch.equal(layers[0], vits.patch_tokens(vit, images)[0])
    (tokens,) = inputs
    width = vit.embed_dim // module.num_heads
    expected = torch.zeros(2, tokens.shape[1])
    for image in range(2):
        queries, keys, _ = module.qkv(tokens[image]).split(vit.embed_dim, dim=-1)
        for head in range(module.num_heads):
            channels = slice(head * width, (head + 1) * width)
            matrix = (queries[:, channels] @ keys[:, channels].T / math.sqrt(width)).softmax(dim=-1)
            expected[image] += matrix[0] / module.num_heads
    torch.testing.assert_close(attention, expected[:, vit.num_prefix_tokens :], atol=1e-6, rtol=1e-4)
    assert (attention.sum(1) < 1).all()  # the rest goes to the prefix tokens
    assert not module.qkv._forward_hooks


def test_attention_is_float32_under_autocast(tiny):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, attention = vits.patch_tokens_and_attention(tiny, torch.randn(1, 3, 64, 48))
    assert attention.dtype == torch.float32


def test_no_hook_stays_after_a_failure(tiny):
    with pytest.raises(RuntimeError):
        vits.patch_tokens_and_attention(tiny, torch.randn(1, 5, 64, 48))
    assert not tiny.blocks[-1].attn.qkv._forward_hooks


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (TINY, (32, 32), True),
        ("deit_tiny_distilled_patch16_224", (32, 32), True),
        (MEAN_POOLED, (32, 32), False),
        ("vit_pwee_patch16_reg1_gap_256", (32, 32), False),
    ],
)
def test_encoders_that_can_guide_the_mask(name, size, expected):
    assert vits.has_cls_attention(vits.create_vit(name, size)) is expected


@pytest.mark.parametrize(("name", "size"), [(TINY, (32, 48)), (REGISTERS, (56, 70)), (MEAN_POOLED, (64, 32))])
def test_a_student_is_initialised_as_specified(name, size):
    vit = build(name, size).requires_grad_(True)
    vits.init_student(vit)
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight.flatten(1)
            bound = math.sqrt(6 / sum(weight.shape))
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, LayerScale):
            assert (module.gamma == 1).all()
    for token in (vit.cls_token, vit.reg_token):
        assert token is None or token.std().item() == pytest.approx(0.02, rel=0.25)
    assert not vit.pos_embed.requires_grad
    assert all(parameter.requires_grad for key, parameter in vit.named_parameters() if key != "pos_embed")


@pytest.mark.parametrize(("name", "size"), [(TINY, (32, 48)), (REGISTERS, (56, 70))])
def test_the_students_position_embedding_is_sine_and_cosine_of_row_and_column(name, size):
    vit = vits.create_vit(name, size)
    vits.init_student(vit)
    position, grid, quarter = vit.pos_embed[0], vit.patch_embed.grid_size, vit.embed_dim // 4
    patches = position[-grid[0] * grid[1] :].reshape(*grid, -1)
    assert not position[: -grid[0] * grid[1]].any()  # nothing is added to the prefix tokens
    frequencies = 10_000 ** -(torch.arange(quarter) / quarter)
    rows = (torch.arange(grid[0])[:, None] * frequencies)[:, None].expand(*grid, -1)
    columns = (torch.arange(grid[1])[:, None] * frequencies)[None].expand(*grid, -1)
    expected = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1)
    # the order of the channels means nothing
    torch.testing.assert_close(patches.sort(dim=-1).values, expected.sort(dim=-1).values, atol=1e-5, rtol=0)
    order = [(patches - channel[..., None]).abs().amax((0, 1)).argmin().item() for channel in expected.unbind(-1)]
    torch.testing.assert_close(patches[..., order], expected, atol=1e-5, rtol=0)


def test_two_students_differ_and_the_seed_repeats_them():
    vit = vits.create_vit(TINY, (32, 32))
    drawn = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        vits.init_student(vit)
        drawn.append(vit.blocks[0].attn.qkv.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_a_default_vit_has_no_classifier():
    vit = vits.create_vit("deit_tiny_distilled_patch16_224", (32, 32))
    assert not any(key.startswith("head") for key in vit.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("no_such_model", (64, 64), "'no_such_model' is not a timm model.*Similar"),
        ("deit_tiny_patch", (64, 64), "Similar names: deit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.no_such_tag", (64, 64), "no pretrained tag 'no_such_tag'"),
        ("resnet18", (64, 64), "'resnet18' cannot be built as a ViT"),
        ("beit_base_patch16_224", (64, 64), "is a Beit: only timm's .* family is supported .vit_base_patch16_224, "),
        ("deit_tiny_patch16_224", (60, 64), r"image_size=\(60, 64\) must be a multiple of the patch size \(16, 16\)"),
        ("deit_tiny_patch16_224", (64, 72), r"image_size=\(64, 72\) must be a multiple"),
    ],
)
def test_what_cannot_be_built_is_named(name, size, message):
    with pytest.raises(ValueError, match=message):
        vits.create_vit(name, size)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_r_s16_p8_224"])
def test_an_unusual_vit_works_or_is_refused_when_it_is_built(name):
    # patches without a flat sequence (dynamic_img_size), or cut out of a convolutional network's features
    try:
        vit = vits.create_vit(name, (64, 96)).eval()
    except ValueError:
        return
    images = torch.randn(1, 3, 64, 96)
    expected = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(vits.patch_tokens(vit, images)[0], expected, atol=1e-5, rtol=1e-4)


def test_the_statistics_of_the_pretraining_are_known_without_building():
    config = data_config("vit_base_patch16_224.augreg_in21k_ft_in1k")
    assert config == DataConfig(image_size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config = data_config("deit_tiny_patch16_224")
    assert config.mean == pytest.approx((0.485, 0.456, 0.406))
    assert data_config(REGISTERS).image_size == (518, 518)


def test_l2_normalisation_is_float32_and_per_token():
    tokens = 100 * torch.randn(2, 5, 16)
    torch.testing.assert_close(l2_normalize(tokens).norm(dim=-1), torch.ones(2, 5))
    assert l2_normalize(tokens.half()).dtype == torch.float32


def test_a_map_keeps_the_scale_and_place_of_the_distances():
    distances = torch.zeros(2, 6)
    distances[1, 4] = 0.8  # row 1, column 1 of a 2 x 3 grid
    maps = anomaly_map(distances, (2, 3), (32, 48))
    assert maps.shape == (2, 1, 32, 48)
    assert not maps[0].any()
    assert maps.max().item() == pytest.approx(0.8, rel=0.05)
    row, column = divmod(int(maps[1, 0].argmax()), 48)
    assert (row // 16, column // 16) == (1, 1)
    # not stretched to [0, 1] per image, and the mean is the score's
    assert maps[1].mean().item() < 0.8
    flat = anomaly_map(torch.full((1, 6), 0.3), (2, 3), (32, 48))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))
