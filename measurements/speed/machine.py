"""The floor: the time that the fastest engine at hand takes for the matrix products of a ViT."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_defend.benchmark.machine import has_bf16

from .exports import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from timm.models import VisionTransformer

    from .timing import Times


class Products(nn.Module):
    """The four matrix products of one block of a ViT, for a batch.

    Args:
        vit: Encoder whose widths are taken.
        tokens: Rows: images times tokens.
        dtype: Of the operands.
    """

    def __init__(self, vit: VisionTransformer, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        dim, hidden = vit.embed_dim, vit.blocks[0].mlp.fc1.out_features
        shapes = [(3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden)]
        self.weights = nn.ParameterList(torch.randn(shape, dtype=dtype) for shape in shapes)
        self.inputs = tuple(torch.randn(tokens, columns, dtype=dtype) for columns in (dim, hidden))
        self.flop = sum(2 * tokens * rows * columns for rows, columns in shapes)

    def forward(self, narrow: Tensor, wide: Tensor) -> list[Tensor]:
        """The products."""
        return [F.linear(wide if weight.shape[1] == wide.shape[1] else narrow, weight) for weight in self.weights]

    @torch.inference_mode()
    def compute(self) -> None:
        """Compute them once with torch."""
        self(*self.inputs)


class Floor:
    """The products, computed by every engine in every precision that the processor has.

    Called among the contenders, they tell the machine's rate then. They are computed for a batch and for an eighth of
    it, which may stay in the processor's cache. A precision that the processor has not is emulated and tells nothing.

    Args:
        vit: Encoder whose widths are taken.
        tokens: Rows: images times tokens.
        threads: Of OpenVINO.
    """

    def __init__(self, vit: VisionTransformer, tokens: int, threads: int) -> None:
        self.flop: dict[str, int] = {}
        self.calls: dict[str, Callable[[], object]] = {}
        for part, rows in (("products", tokens), ("an eighth of the products", max(1, tokens // 8))):
            single = Products(vit, rows)
            inputs = [value.numpy() for value in single.inputs]
            calls: dict[str, Callable[[], object]] = {f"{part}, torch, f32": single.compute}
            for precision in ("f32", "bf16") if has_bf16() else ("f32",):
                request = compiled(single, single.inputs, threads, precision).create_infer_request()
                infer = partial(request.infer, inputs, share_inputs=True, share_outputs=True)
                calls[f"{part}, OpenVINO, {precision}"] = infer
            if has_bf16():
                calls[f"{part}, torch, bf16"] = Products(vit, rows, torch.bfloat16).compute
            self.calls |= calls
            self.flop |= dict.fromkeys(calls, single.flop)

    def rates(self, times: Times) -> dict[str, float]:
        """FLOP a second of each engine and precision, from the times of ``calls``."""
        return {name: self.flop[name] / median(times[name]) for name in self.calls}

    def seconds(self, times: Times, flop: float, *, single: bool) -> float:
        """The time that the fastest one takes for ``flop`` operations.

        Args:
            times: Those of ``calls``, measured in turns with the contenders.
            flop: Operations.
            single: In float32 only.
        """
        return flop / max(rate for name, rate in self.rates(times).items() if not single or name.endswith("f32"))
