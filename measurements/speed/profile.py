"""What OpenVINO does while it scores: its own counters, by kind of operation, beside the floor.

The counters of an export compiled as for scoring, in float32 and, where the processor has it, in bf16, over several
batches from memory. Of the operations that the floor counts, the table says how near they come to its rate; the rest is
what stands between scoring and its floor. Products of attention are of no line: OpenVINO computes some of them with the
softmax between them, as one operation of the kind Subgraph.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from anomalib_defend.benchmark.machine import has_bf16

from . import operations
from .exports import CALIBRATION, export, scorer
from .machine import Floor
from .networks import photographs, random_images, random_model
from .report import Options, Result, by_backbone, table
from .timing import alternate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from timm.models import VisionTransformer


ATTENTION = "attention"


def products(vit: VisionTransformer) -> dict[str, int]:
    """What an encoder's matrix products take for an image, by OpenVINO's name for them, which attention's have not."""
    patches, number = vit.patch_embed.num_patches, len(vit.blocks)
    tokens = patches + vit.num_prefix_tokens
    return {
        "FullyConnected": number * operations.linear(vit, tokens),
        ATTENTION: number * operations.attention(vit, tokens),
        "Convolution": operations.embedding(vit, patches),
    }


def counted(request: Any) -> Counter[str]:
    """Seconds of each kind of operation, in the request's last run."""
    seconds: Counter[str] = Counter()
    for operation in request.get_profiling_info():
        if operation.status == operation.Status.EXECUTED:
            seconds[operation.node_type] += operation.real_time.total_seconds()
    return seconds


def measure(backbone: str, precision: str, options: Options, folder: Path) -> tuple[str, dict[str, float]]:
    """Table and figures of one encoder in one precision."""
    paths = photographs(options.images, CALIBRATION, folder / "photographs")
    model = random_model(backbone).eval()
    network = model.model
    xml = export(model, folder, "f32", paths[0].parent)
    images = random_images(options.batch, network.image_size).numpy()
    request = scorer(xml, options.threads, precision=precision, count=True).create_infer_request()
    tokens = options.batch * (network.teacher.patch_embed.num_patches + 1)
    floor = Floor(network.teacher, tokens, options.threads)
    kinds: list[Counter[str]] = []

    def score() -> None:
        request.infer({0: images}, share_inputs=True)
        kinds.append(counted(request))

    times = alternate({"score": score, **floor.calls}, options.repeats, options.clock)
    whole = median(times["score"])
    runs = list(zip(kinds[1:], times["score"], strict=True))  # the first one is not measured
    spent = {kind: whole * median(counts[kind] / seconds for counts, seconds in runs) for kind in kinds[0]}
    encoders = [products(vit) for vit in (network.teacher, network.student)]
    flop = {kind: options.batch * sum(encoder[kind] for encoder in encoders) for kind in encoders[0]}

    def share(operations: int, seconds: float) -> float:
        return floor.seconds(times, operations, single=precision == "f32") / seconds

    rows: list[dict[str, object]] = [
        {
            f"OpenVINO, {precision}, {backbone}, batch {options.batch}": kind,
            "share of the time": seconds / whole,
            "share of its floor": share(flop[kind], seconds) if kind in flop else None,
        }
        for kind, seconds in sorted(spent.items(), key=lambda item: -item[1])
        if seconds > 0.005 * whole
    ]
    rows.append(
        {
            f"OpenVINO, {precision}, {backbone}, batch {options.batch}": "everything",
            "share of the time": 1.0,
            "share of its floor": share(sum(flop.values()), whole),
        }
    )
    name = "products_share_of_scoring" if precision == "f32" else f"products_share_of_scoring_{precision}"
    return table(rows), {name: sum(spent.get(kind, 0) for kind in flop) / whole}


def run(options: Options) -> Iterator[Result]:
    """Measure with each encoder."""
    for backbone, precision in product(options.backbones, ("f32", "bf16") if has_bf16() else ("f32",)):
        with tempfile.TemporaryDirectory() as folder:
            markdown, figures = measure(backbone, precision, options, Path(folder))
        yield Result(markdown, by_backbone(figures, backbone, options))
