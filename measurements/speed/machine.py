"""The rate of the matrix products that a ViT consists of, by each engine at hand: the fastest one is the floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exports import compiled

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


class OpenVINOProducts:
    """The same products, computed by OpenVINO.

    Args:
        products: Those in float32.
        threads: As the contenders have them.
        precision: OpenVINO's hint; its default if ``None``.
    """

    def __init__(self, products: MatrixProducts, threads: int, precision: str | None) -> None:
        self.flop = products.flop
        model = _Products(products.weights).eval()
        self._inputs = [value.numpy() for value in products.inputs.values()]
        self._request = compiled(model, tuple(products.inputs.values()), threads, precision).create_infer_request()

    def __call__(self) -> None:
        """Compute them once."""
        self._request.infer(self._inputs, share_inputs=True, share_outputs=True)


class _Products(nn.Module):
    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.columns = weights[0].shape[1]

    def forward(self, narrow: Tensor, wide: Tensor) -> list[Tensor]:
        """The products."""
        return [F.linear(narrow if weight.shape[1] == self.columns else wide, weight) for weight in self.weights]
