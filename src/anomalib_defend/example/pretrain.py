"""Pretrain the example's teacher: ``python -m anomalib_defend.example.pretrain``.

The ViT of ``example.encoder`` learns to name the digit under every patch, and all digits of the scene from its class
token. Both use the model's own head: a patch shows one of the ten digits or the background, whose logit is fixed at
zero. Scenes are composed while training, from digits that no scene of the example shows: small scenes of one digit
first, from which a ViT learns what digits look like far sooner, then scenes of several, up to full size.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from anomalib_defend.example.encoder import MODEL_NAME, WEIGHTS
from anomalib_defend.example.scenes import CATEGORIES, SCENE_SIZE, Part, Scene, compose_scene, draw_classes, load_part

PATCH = 8
DIGIT_SIZES = (32, 44)  # in pixels: a wider range than in the example


class Stage(NamedTuple):
    """What is trained on for a while: scenes of ``side`` pixels with ``fewest`` to ``most`` digits."""

    side: int
    fewest: int
    most: int
    batch_size: int
    steps: int


CURRICULUM = (Stage(48, 1, 1, 64, 500), Stage(72, 2, 2, 40, 400), Stage(SCENE_SIZE, 2, 4, 32, 500))


def compose_batch(part: Part, count: int, stage: Stage, rng: np.random.Generator) -> list[Scene]:
    """Compose scenes of digits of different classes as the stage asks for."""
    digits = load_part(part)
    numbers = rng.integers(stage.fewest, stage.most + 1, size=count)
    return [compose_scene(digits, draw_classes(rng, int(number)), rng, stage.side, DIGIT_SIZES) for number in numbers]


def as_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Turn scenes into the model's input and the two kinds of labels.

    Returns:
        Images ``(B, 3, H, W)`` in [-1, 1], patch labels ``(B, H W / 64)`` (0 background, 1 + digit where the centre of
        the patch lies in the box of a digit), image labels ``(B, 10)`` (1 where the scene holds the digit).
    """
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    grid = images.shape[-1] // PATCH
    centres = PATCH * np.arange(grid) + PATCH / 2
    patches = np.zeros((len(scenes), grid, grid), dtype=np.int64)
    present = np.zeros((len(scenes), len(CATEGORIES)), dtype=np.float32)
    for i, scene in enumerate(scenes):
        for item in scene.objects:
            left, top, right, bottom = item.box
            rows, columns = (centres >= top) & (centres < bottom), (centres >= left) & (centres < right)
            patches[i][np.ix_(rows, columns)] = 1 + item.label
            present[i, item.label] = 1
    inputs = torch.from_numpy(images.copy()).float().div_(127.5).sub_(1)
    return inputs, torch.from_numpy(patches).flatten(1), torch.from_numpy(present)


def logits(model: VisionTransformer, images: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """Classify patches and image with the model's own head.

    Args:
        model: The ViT.
        images: ``(B, 3, H, W)``; small images take the position embedding of a window of the model's grid.
        corner: Row and column where this window begins.

    Returns:
        Patch logits ``(B, H W / 64, 11)``, background first, and image logits ``(B, 10)``.
    """
    tokens = model.patch_embed.proj(images).flatten(2).mT
    rows, columns = (side // PATCH for side in images.shape[-2:])
    positions = model.pos_embed[:, 1:].unflatten(1, model.patch_embed.grid_size)
    window = positions[:, corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    prefix = (model.cls_token + model.pos_embed[:, :1]).expand(len(images), -1, -1)
    tokens = torch.cat([prefix, tokens + window.flatten(1, 2)], dim=1)
    scores = model.head(model.norm(model.blocks(tokens)))
    return F.pad(scores[:, 1:], (1, 0)), scores[:, 0]


def initialise(model: VisionTransformer) -> VisionTransformer:
    """Start with patches that attend to their neighbourhood: a small ViT on few images learns far sooner from there.

    Keys equal queries and positions are short-waved 2-D sines (Trockman and Kolter, "Mimetic Initialization of
    Self-Attention Layers", 2023), so that two thirds of the attention stays within three patches. The other layers are
    Xavier-uniform.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
    torch.nn.init.xavier_uniform_(model.patch_embed.proj.weight.data.flatten(1))
    for block in model.blocks:
        query, key, _ = block.attn.qkv.weight.data.chunk(3)
        key.copy_(query.mul_(2))
    grid = list(model.patch_embed.grid_size)
    model.pos_embed.data[0, 1:] = build_sincos2d_pos_embed(grid, model.embed_dim, temperature=10)
    return model


def train(curriculum: Sequence[Stage] = CURRICULUM, *, lr: float = 1.5e-3, seed: int = 0) -> VisionTransformer:
    """Train the teacher from scratch; the same arguments give the same weights on the same machine.

    Args:
        curriculum: The stages, one after the other.
        lr: Learning rate between its rise over 100 steps and its fall over the last third of the steps.
        seed: Of the start and of the scenes.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = initialise(timm.create_model(MODEL_NAME, pretrained=False))
    plan = [stage for stage in curriculum for _ in range(stage.steps)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 100, 3 * (len(plan) - step) / len(plan))
    )
    weight = torch.tensor([0.3] + [1.0] * len(CATEGORIES))  # most patches are background
    start = time.monotonic()
    for step, stage in enumerate(plan, start=1):
        images, patches, present = as_tensors(compose_batch("pretrain", stage.batch_size, stage, rng))
        row, column = rng.integers(0, (SCENE_SIZE - stage.side) // PATCH + 1, size=2)
        patch_logits, image_logits = logits(model, images, (row, column))
        loss = F.cross_entropy(patch_logits.flatten(0, 1), patches.flatten(), weight)
        loss = loss + F.binary_cross_entropy_with_logits(image_logits, present)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{len(plan)} loss {loss.item():.3f} ({time.monotonic() - start:.0f} s)", flush=True)
    return model.eval()


@torch.no_grad()
def evaluate(
    model: VisionTransformer, part: Part = "pretrain_val", count: int = 200, seed: int = 1
) -> dict[str, float]:
    """Measure a pretrained model on scenes of digits it was not trained on.

    Returns:
        ``patch`` accuracy over 11 classes, ``object`` the same over patches that show a digit, ``image`` accuracy over
        the ten labels of each image.
    """
    images, patches, present = as_tensors(compose_batch(part, count, CURRICULUM[-1], np.random.default_rng(seed)))
    outputs = [logits(model, chunk) for chunk in images.split(50)]
    predicted = torch.cat([patch for patch, _ in outputs]).argmax(-1)
    holds = torch.cat([image for _, image in outputs]) > 0
    correct = (predicted == patches).float()
    return {
        "patch": correct.mean().item(),
        "object": correct[patches > 0].mean().item(),
        "image": (holds == present.bool()).float().mean().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write the weights."""
    parser = argparse.ArgumentParser(description="Pretrain the tiny ViT of the embedded example.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="default: the file that the package ships")
    args = parser.parse_args(argv)
    start = time.monotonic()
    model = train(seed=args.seed)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.output)
    args.output.chmod(0o644)  # safetensors makes it private
    shares = evaluate(model)
    print("held-out accuracy: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.2f} MB) after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
