"""Patch tokens and attention of a timm ViT.

Shapes: B images, N = (H / p)(W / p) patch tokens, P prefix tokens ([CLS], distillation, registers), D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Format, LayerScale, PatchEmbed, build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from .encoder import data_config


def create_vit(backbone: str, image_size: tuple[int, int], drop_path_rate: float = 0.0) -> VisionTransformer:
    """Build a timm ViT without classifier for inputs of ``image_size`` (height, width), randomly initialised.

    Raises:
        ValueError: If the name is not a plain ViT, or the size is not a multiple of its patch size.
    """
    data_config(backbone)  # a wrong name is named as such
    supported = "only timm's VisionTransformer family is supported (vit_base_patch16_224, deit_tiny_patch16_224 ...)."
    # on the meta device there is nothing to initialise, and torch would take each of timm's steps in Python
    options = {"weight_init": "skip"} if torch.get_default_device().type == "meta" else {}
    try:
        vit = timm.create_model(backbone, num_classes=0, img_size=image_size, drop_path_rate=drop_path_rate, **options)
    except (TypeError, AssertionError) as error:
        msg = f"backbone={backbone!r} cannot be built as a ViT for image_size={image_size}: {error}; {supported}"
        raise ValueError(msg) from error
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_embed, PatchEmbed):
        msg = f"backbone={backbone!r} is a {type(vit).__name__}: {supported}"
        raise ValueError(msg)
    patch = vit.patch_embed.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        msg = f"image_size={image_size} must be a multiple of the patch size {patch} of {backbone!r}."
        raise ValueError(msg)
    vit.patch_embed.flatten, vit.patch_embed.output_fmt = True, Format.NCHW  # dynamic_img_size turns it off
    vit.dynamic_img_size = False
    vit.attn_pool = None  # takes no part in the patch tokens
    vit.patch_embed.strict_img_size = False  # crops are smaller than the input
    return vit


def init_student(vit: VisionTransformer) -> None:
    """Initialise a student in place (design of the paper's code, as in MAE).

    Xavier-uniform linear layers and patch embedding, zero biases, unit norms and layer scales, prefix tokens
    N(0, 0.02), fixed 2-D sin-cos position embedding.
    """
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.ones_(module.gamma)  # 1e-5, as for fine-tuning, would switch a fresh block off
        elif hasattr(module, "reset_parameters"):  # norms
            module.reset_parameters()
    for token in _prefix_tokens(vit):
        nn.init.normal_(token, std=0.02)
    if vit.pos_embed is not None:
        grid = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim=vit.embed_dim)
        with torch.no_grad():
            vit.pos_embed.zero_()
            vit.pos_embed[0, -grid.shape[0] :] = grid
        vit.pos_embed.requires_grad_(False)


def embed(vit: VisionTransformer, images: Tensor, keep: Tensor | None = None) -> Tensor:
    """Patch, prefix and position embedding: [B, 3, H, W] -> [B, P + N, D], or [B, P + M, D] of the patches to keep.

    As timm's own, except that the position embedding is resampled only where the size differs from the encoder's:
    timm resamples always while a model is exported, which OpenVINO does not take.
    """
    x = vit.patch_embed(images) if keep is None else _embed_patches(vit, images, keep)
    grid = (images.shape[-2] // vit.patch_embed.patch_size[0], images.shape[-1] // vit.patch_embed.patch_size[1])
    position = _position(vit, grid)
    prefix = [token.expand(x.shape[0], -1, -1) for token in _prefix_tokens(vit)]
    if position is not None and keep is not None:
        own = position.shape[1] - grid[0] * grid[1]  # of the prefix tokens, if they have any
        position = torch.cat([position[:, :own].expand(len(keep), -1, -1), position[0, own:][keep]], dim=1)
    if position is not None and vit.no_embed_class:
        x = x + position
    x = torch.cat([*prefix, x], dim=1)
    if position is not None and not vit.no_embed_class:
        x = x + position
    return vit.norm_pre(x)


def _embed_patches(vit: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """The patch embedding of the patches ``keep`` alone, [B, M] -> [B, M, D]: a convolution would embed all of them."""
    (p, q), projection = vit.patch_embed.patch_size, vit.patch_embed.proj
    patches = rearrange(images, "b c (h p) (w q) -> b h w c p q", p=p, q=q)  # a view
    image = torch.arange(len(keep), device=keep.device)[:, None]
    kept = patches[image, keep // patches.shape[2], keep % patches.shape[2]]
    return vit.patch_embed.norm(F.linear(kept.flatten(2), projection.weight.flatten(1), projection.bias))


def _position(vit: VisionTransformer, grid: tuple[int, int]) -> Tensor | None:
    position = vit.pos_embed
    if position is None or grid == tuple(vit.patch_embed.grid_size):
        return position
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    return resample_abs_pos_embed(position, list(grid), list(vit.patch_embed.grid_size), num_prefix_tokens=prefix)


def patch_tokens(
    vit: VisionTransformer,
    images: Tensor,
    *,
    keep: Tensor | None = None,
    num_layers: int = 1,
    final_norm: bool = True,
) -> list[Tensor]:
    """Patch tokens of the last blocks, f(x) for the last one; prefix tokens take part and are dropped at the end.

    Args:
        vit: The encoder.
        images: Images, [B, 3, H, W].
        keep: Patches that the encoder sees, [B, M] indices; the others are removed from the sequence. All if ``None``.
        num_layers: Number of last blocks.
        final_norm: Apply the encoder's final LayerNorm.

    Returns:
        One tensor [B, N or M, D] for each of the last ``num_layers`` blocks, the last block's at the end.
    """
    x = embed(vit, images, keep)
    layers = []
    first = len(vit.blocks) - num_layers
    with attention_for(vit, images.device):
        for index, block in enumerate(vit.blocks):
            x = block(x)
            if index >= first:
                layers.append(x[:, vit.num_prefix_tokens :])
    # timm keeps the final norm in fc_norm for encoders that pool by the mean; the other one is the identity
    return [vit.fc_norm(vit.norm(tokens)) for tokens in layers] if final_norm else layers


def attention_for(network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Attention in plain products where torch's fused one is slow: backwards in half precision on a CPU."""
    slow = device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return plain_attention(network) if slow else nullcontext()


@contextmanager
def plain_attention(network: nn.Module) -> Iterator[None]:
    """Meanwhile, the attention of all timm encoders within is computed as products and a softmax, not fused."""
    fused: list[Any] = [module for module in network.modules() if getattr(module, "fused_attn", False)]
    for attention in fused:
        attention.fused_attn = False
    try:
        yield
    finally:
        for attention in fused:
            attention.fused_attn = True


def has_cls_attention(vit: VisionTransformer, block: int | None = None) -> bool:
    """Whether a block attends from a [CLS] token in the way that `patch_tokens_and_attention` reads."""
    attention = getattr(_block(vit, block), "attn", None)
    return vit.cls_token is not None and all(hasattr(attention, name) for name in ("qkv", "q_norm", "k_norm", "scale"))


def patch_tokens_and_attention(
    vit: VisionTransformer,
    images: Tensor,
    *,
    num_layers: int = 1,
    final_norm: bool = True,
    attention_block: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """`patch_tokens` and, from the same pass, how much a block's [CLS] attends to each patch (eq. 2).

    The queries and keys are caught where the block computes them; only the [CLS] query's row of the attention matrix
    is formed, beside the block's own attention, which may be fused.

    Args:
        vit: The encoder.
        images: Images, [B, 3, H, W].
        num_layers: Number of last blocks whose tokens are returned.
        final_norm: Apply the encoder's final LayerNorm.
        attention_block: Number of the block whose attention is read, from 1; the last one if ``None``.

    Returns:
        The layers' patch tokens, and the `cls_attention`, [B, N] float32.
    """
    block = _block(vit, attention_block)
    with catch_output(block.attn.qkv) as caught:
        layers = patch_tokens(vit, images, num_layers=num_layers, final_norm=final_norm)
    return layers, cls_attention(vit, block, caught[0])


def cls_attention(vit: VisionTransformer, block: Any, qkv: Tensor) -> Tensor:
    """How much [CLS] attends to each patch in one block.

    Args:
        vit: The encoder.
        block: One of its blocks.
        qkv: What the block's ``attn.qkv`` makes of the tokens, [B, P + N, 3 D].

    Returns:
        a_p = mean over heads of softmax(q_cls k^T / sqrt(d)) at patch p, [B, N] float32.
    """
    attention = block.attn
    q, k, _ = rearrange(qkv, "b t (three heads d) -> three b heads t d", three=3, heads=attention.num_heads)
    q, k = attention.q_norm(q[:, :, :1]), attention.k_norm(k)
    with torch.autocast(q.device.type, enabled=False):
        weights = (q.float() * attention.scale @ k.float().transpose(-2, -1)).softmax(dim=-1)
    return weights[:, :, 0, vit.num_prefix_tokens :].mean(dim=1)


def _block(vit: VisionTransformer, number: int | None) -> Any:
    return vit.blocks[-1 if number is None else number - 1]


@contextmanager
def catch_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module returns each time that it is called meanwhile."""
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        yield caught
    finally:
        handle.remove()


def pooled(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """The token that stands for the image, from the last block's [B, P + N, D]: [CLS], or the mean patch; [B, D]."""
    tokens = vit.fc_norm(vit.norm(tokens))
    by_token = vit.cls_token is not None and vit.global_pool == "token"
    return tokens[:, 0] if by_token else tokens[:, vit.num_prefix_tokens :].mean(dim=1)


def _prefix_tokens(vit: VisionTransformer) -> list[nn.Parameter]:
    tokens = (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
    return [token for token in tokens if token is not None]
