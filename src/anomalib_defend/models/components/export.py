"""Exports that appear complete or not at all, and quantisation that keeps the scores of a ViT teacher and student."""

from __future__ import annotations

import copy
import logging
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from anomalib.data import AnomalibDataModule, AnomalibDataset
    from openvino import Model

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 300
MIN_CALIBRATION_IMAGES = 100
PRODUCTS = {"MatMul", "Convolution", "GroupConvolution"}
# the comparison of feature maps, the norms and depthwise convolutions decide the score, and cost next to nothing
FLOAT_OPERATIONS = [
    "Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt", "MVN", "NormalizeL2", "ReduceMean", "ReduceSum",
    "ReduceL2", "Interpolate", "TopK", "SquaredDifference", "GroupConvolution",
]  # fmt: skip


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers that say nothing below a warning meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def complete_export(root: Path) -> Iterator[Path]:
    """A folder to export into; its files move to ``root`` when the export is complete, a failed one changes nothing.

    The exporter's thousands of log lines are kept back meanwhile.
    """
    root.mkdir(parents=True, exist_ok=True)
    with quiet("onnx_ir", "onnxscript"), TemporaryDirectory(dir=root, prefix=".export-") as folder:
        yield Path(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            target = root / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


def given_to_export(caller: FrameType | None) -> dict[str, Any]:
    """The components of the model that ``Engine.export`` was given beside a checkpoint, as arguments.

    The engine loads another model from the checkpoint and drops this one, and with it what the command line said of
    the threshold; a test or a prediction keeps it. Nothing but the engine's own frame knows it.

    Args:
        caller: The frame of the function that loads a checkpoint.

    Returns:
        Copies of pre- and post-processor, by the name of their argument; nothing if the caller is another one.
    """
    from anomalib.engine import Engine  # noqa: PLC0415 - longer to import than the models

    if caller is None or caller.f_code is not Engine.export.__code__:
        return {}
    model = caller.f_locals.get("model")
    parts = {name: getattr(model, name, None) for name in ("pre_processor", "post_processor")}
    return {name: copy.deepcopy(part) for name, part in parts.items() if part is not None}


def quantize(model: Model, datamodule: AnomalibDataModule | None = None) -> Model:
    """Quantise an OpenVINO model to 8 bits, calibrated on training images (normal by construction).

    Takes the place of anomalib's own hook, whose defaults treat a transformer as a convolutional network and calibrate
    on the validation images, of which there may be few.

    Args:
        model: The exported model, with pre- and post-processing.
        datamodule: Where the calibration images come from.

    Raises:
        ValueError: If there is no datamodule, or it has fewer than 100 training images.
    """
    import nncf  # noqa: PLC0415 - optional extra

    images = calibration_images(datamodule)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
    # one at a time: the model resizes, images differ in size
    loader = DataLoader(Subset(images, order.tolist()), batch_size=1, collate_fn=images.collate_fn)
    logger.info("Calibrating on %d training images.", len(order))
    with quiet("nncf"):  # else a line for each operation
        return nncf.quantize(
            model,
            nncf.Dataset(loader, lambda batch: batch.image.numpy()),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(order),
            ignored_scope=nncf.IgnoredScope(types=FLOAT_OPERATIONS, names=outer_layers(model), validate=False),
        )


def outer_layers(model: Model) -> list[str]:
    """Names of the products that 8 bits would round where it counts: they cost little and decide the score.

    Those up to the first convolution, which are the resize and the first layer, that sees pixels; and the last ones,
    which compare features with what is normal.
    """
    operations = [(operation.get_friendly_name(), operation) for operation in model.get_ordered_ops()]
    products = {name for name, operation in operations if operation.get_type_name() in PRODUCTS}
    first, last = [], []
    convolved: set[str] = set()  # what a convolution leads to, or is
    for name, operation in operations:
        sources = {source.get_source_output().get_node().get_friendly_name() for source in operation.inputs()}
        if sources & convolved:
            convolved.add(name)
        elif name in products:
            first.append(name)
            convolved |= {name} if operation.get_type_name() != "MatMul" else set()
    multiplied: set[str] = set()  # what leads to a product, or is one
    for name, operation in reversed(operations):
        inputs = [goal for output in operation.outputs() for goal in output.get_target_inputs()]
        if {goal.get_node().get_friendly_name() for goal in inputs} & multiplied:
            multiplied.add(name)
        elif name in products:
            last.append(name)
            multiplied.add(name)
    return first + last


def calibration_images(datamodule: AnomalibDataModule | None) -> AnomalibDataset:
    """Return the training images, if they are enough to calibrate on.

    Raises:
        ValueError: If there is no datamodule, or it has fewer than 100 training images.
    """
    if datamodule is None:
        msg = "compression_type=INT8_PTQ needs images to calibrate on: pass --data (or datamodule=)."
        raise ValueError(msg)
    datamodule.setup("fit")
    images = datamodule.train_data
    if len(images) < MIN_CALIBRATION_IMAGES:
        msg = (
            f"compression_type=INT8_PTQ is calibrated on at least {MIN_CALIBRATION_IMAGES} training images, but "
            f"the datamodule has {len(images)}: use compression_type=INT8 (weights alone), which needs none."
        )
        raise ValueError(msg)
    return images
