"""The machine: what it is, and the rate of the matrix products that a ViT consists of."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from timm.models import VisionTransformer


def describe(threads: int) -> str:
    """One line: processor, cores, threads and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags.split()]
    return (
        f"{names[0] if names else platform.processor()} ({', '.join(units)}), {len(names)} cores, {threads} threads; "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    )


_PACKAGES = ("torch", "timm", "anomalib", "openvino", "nncf")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


class MatrixProducts:
    """The four products of one block, for a batch: called among the contenders, it tells the machine's rate then.

    Args:
        vit: Encoder whose widths are taken.
        tokens: Rows: images times tokens.
        dtype: Of the operands.
    """

    def __init__(self, vit: VisionTransformer, tokens: int, dtype: torch.dtype) -> None:
        dim, hidden = vit.embed_dim, vit.blocks[0].mlp.fc1.out_features
        shapes = [(3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden)]
        self.weights = [torch.randn(shape).to(dtype) for shape in shapes]
        self.inputs = {columns: torch.randn(tokens, columns).to(dtype) for columns in (dim, hidden)}
        self.flop = sum(2 * tokens * rows * columns for rows, columns in shapes)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Compute them once."""
        for weight in self.weights:
            F.linear(self.inputs[weight.shape[1]], weight)
