"""The machine's rate of the matrix products that a ViT consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from timm.models import VisionTransformer


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
