"""The published procedure, the baseline: both losses from the paper's equations, computed in the order of its code.

Stage 1 projects and assigns the whole view again for each crop and keeps that graph, builds the label maps image by
image, and compares embeddings that were upsampled to the crop's size. Stage 2 runs the teacher twice, for attention and
for features. Attention matrices are formed in full. Boxes and masks are drawn as in `DefendModel`, from torch's state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.ops import roi_align

from anomalib_defend.models.defend.torch_model import CROP_SCALE, VIEW_SCALE, DefendModel
from anomalib_defend.nn.crops import sample_boxes
from anomalib_defend.nn.distance import TeacherOutput
from anomalib_defend.nn.masking import num_kept, sample_patches
from anomalib_defend.nn.vit import embed

EPSILON, ITERATIONS, TEMPERATURE = 0.05, 3, 0.1


def forward_with_attention(vit: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch tokens f(x) [B, N, D], and all of the last block's attention [B, heads, P + N, P + N]."""
    x = embed(vit, images)
    for block in vit.blocks:
        layer = block.attn
        q, k, v = layer.qkv(block.norm1(x)).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT * layer.scale).softmax(dim=-1)
        x = x + block.ls1(layer.proj((attention @ v).transpose(1, 2).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.norm(x)[:, vit.num_prefix_tokens :], attention


def forward_kept(vit: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """Patch tokens [B, M, D] of the patches to keep [B, M]: all are embedded, then some dropped; timm's own blocks."""
    prefix, x = vit.num_prefix_tokens, embed(vit, images)
    kept = x[:, prefix:].gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
    x = vit.norm(vit.blocks(torch.cat([x[:, :prefix], kept], dim=1)))
    return x[:, prefix:]


def assign(scores: Tensor) -> Tensor:
    """Sinkhorn's iterations on probabilities, [T, K] -> [T, K]."""
    q = (scores.detach() / EPSILON).exp().T
    q = q / q.sum()
    for _ in range(ITERATIONS):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def crop(image: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """One box (top, left, height, width) of one image [3, H, W], resized: [3, *size]."""
    top, left, height, width = box.float()
    region = torch.stack([left, top, left + width, top + height])
    return roi_align(image[None], [region[None]], size, sampling_ratio=0, aligned=True)[0]


def dense_loss(model: DefendModel, images: Tensor, view_once: bool = False) -> Tensor:
    """Eq. 1, hard targets.

    Args:
        model: Teacher, head and prototypes.
        images: [B, 3, H, W].
        view_once: Assign the view's patches once for all crops, and without gradient: the first thing to improve.
    """
    model.head.normalize_prototypes()
    prototypes, number = model.head.prototypes, model.num_crops
    view_boxes = sample_boxes(len(images), model.image_size, VIEW_SCALE)
    crop_boxes = sample_boxes(len(images) * number, model.grid, CROP_SCALE).unflatten(0, (len(images), number))
    view = torch.stack([crop(*pair, model.image_size) for pair in zip(images, view_boxes, strict=True)])
    pixels = crop_boxes * crop_boxes.new_tensor(model.patch_size * 2)

    def view_labels() -> Tensor:
        embeddings = F.normalize(model.head(features), dim=-1)
        return assign((embeddings @ prototypes.T).flatten(0, 1)).argmax(-1).reshape(len(images), *model.grid)

    with torch.set_grad_enabled(not view_once):
        features, _ = forward_with_attention(model.teacher, view)
        labels = view_labels()
    losses = []
    for index in range(number):
        if index and not view_once:
            labels = view_labels()
        maps = []
        for map_, (top, left, height, width) in zip(labels, crop_boxes[:, index].tolist(), strict=True):
            block = map_[top : top + height, left : left + width].float()
            maps.append(F.interpolate(block[None, None], model.crop_size, mode="nearest-exact")[0, 0].long())
        crops = torch.stack([crop(*pair, model.crop_size) for pair in zip(view, pixels[:, index], strict=True)])
        grid = tuple(side // patch for side, patch in zip(model.crop_size, model.patch_size, strict=True))
        embeddings = model.head(forward_with_attention(model.teacher, crops)[0]).mT.unflatten(2, grid)
        embeddings = F.interpolate(embeddings, model.crop_size, mode="bilinear")
        scores = torch.einsum("bdhw,kd->bkhw", F.normalize(embeddings, dim=1), prototypes)
        losses.append(F.cross_entropy(scores / TEMPERATURE, torch.stack(maps)))
    return torch.stack(losses).mean()


def distill_loss(model: DefendModel, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
    """Eq. 4, guided by eq. 2, on features normalised by eq. 3.

    Args:
        model: Teacher and student.
        images: [B, 3, H, W].
        teacher: What the teacher makes of them, instead of its two passes: the second thing to improve.
    """
    if teacher is not None and teacher.attention is not None:
        guide, target = teacher.attention, teacher.layers[-1]
    else:
        with torch.no_grad():
            _, attention = forward_with_attention(model.teacher, images)
            features, _ = forward_with_attention(model.teacher, images)
        guide = attention.mean(dim=1)[:, 0, model.teacher.num_prefix_tokens :]
        target = F.normalize(features, dim=-1)
    keep = sample_patches(guide, num_kept(guide.shape[1], model.mask_ratio))
    target = target.gather(1, keep[..., None].expand(-1, -1, target.shape[-1]))
    student = forward_kept(model.student, images, keep)
    return F.mse_loss(F.normalize(student, dim=-1), target)
