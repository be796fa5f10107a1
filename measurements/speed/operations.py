"""Floating-point operations that each job cannot do without: its matrix products, for one image.

Counted by hand, since torch's counter does not see the CPU's fused attention. A gradient costs twice the product: once
for the weights, once for the input. Norms, activations and softmax are left out: a floor holds no more than it must.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.models import VisionTransformer

from anomalib_defend.nn.dense_prototypes import EMBED_DIM, HIDDEN_DIM
from anomalib_defend.nn.masking import num_kept

if TYPE_CHECKING:
    from anomalib_defend.models.defend.torch_model import DefendModel


def blocks(vit: VisionTransformer, tokens: int, number: int) -> int:
    """Transformer blocks, forward."""
    return number * (linear(vit, tokens) + attention(vit, tokens))


def linear(vit: VisionTransformer, tokens: int) -> int:
    """Linear layers of one block, forward."""
    dim, hidden = vit.embed_dim, vit.blocks[0].mlp.fc1.out_features
    return 2 * tokens * dim * (4 * dim + 2 * hidden)


def attention(vit: VisionTransformer, tokens: int) -> int:
    """Both products of one block's attention, forward."""
    return 4 * tokens**2 * vit.embed_dim


def embedding(vit: VisionTransformer, patches: int) -> int:
    """Patch embedding, forward."""
    height, width = vit.patch_embed.patch_size
    return 2 * patches * 3 * height * width * vit.embed_dim


def encoder(vit: VisionTransformer, patches: int) -> int:
    """A whole encoder, forward."""
    return embedding(vit, patches) + blocks(vit, patches + vit.num_prefix_tokens, len(vit.blocks))


def head(model: DefendModel, tokens: int) -> int:
    """Projection head, forward."""
    return 2 * tokens * HIDDEN_DIM * (model.teacher.embed_dim + HIDDEN_DIM + EMBED_DIM)


def stage1(model: DefendModel) -> int:
    """Training step: the view forward, the crops forward, and backward through what is trained."""
    vit = model.teacher
    patches = vit.patch_embed.num_patches
    small = (model.crop_size[0] // model.patch_size[0]) * (model.crop_size[1] // model.patch_size[1])
    tuned = sum(any(parameter.requires_grad for parameter in block.parameters()) for block in vit.blocks)
    view = encoder(vit, patches) + head(model, patches)
    crop = encoder(vit, small) + 2 * blocks(vit, small + vit.num_prefix_tokens, tuned) + 3 * head(model, small)
    return view + model.num_crops * crop


def stage2(model: DefendModel, cached: bool) -> int:
    """Training step: the student forward and backward on the kept patches, the teacher once unless it is cached."""
    patches = model.student.patch_embed.num_patches
    kept = patches if model.masking == "none" else num_kept(patches, model.mask_ratio)
    student = 3 * encoder(model.student, kept) - embedding(model.student, kept)  # pixels need no gradient
    return student + (0 if cached else encoder(model.teacher, patches))


def inference(model: DefendModel) -> int:
    """Scoring: both encoders, without masking."""
    return sum(encoder(vit, vit.patch_embed.num_patches) for vit in (model.teacher, model.student))
