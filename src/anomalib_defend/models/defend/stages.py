"""How a trainer runs both stages, and that what they need is undone whichever way the training ends."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataset
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from timm.optim import param_groups_weight_decay
from torch import distributed, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from anomalib_defend.models.components.batches import own_batches, without_augmentations

from .epochs import plan_epochs
from .teacher_cache import RAM, CacheLayout, CachePlace, TeacherCache, choose_place, fingerprint, reserve

if TYPE_CHECKING:
    from .lightning_model import Defend
    from .torch_model import DefendModel

logger = logging.getLogger(__name__)

PROTOTYPES_PER_CATEGORY = 5  # chosen with `anomalib_defend.benchmark.prototypes`
MAX_FEATURES = 10_000  # that prototypes are made of: memory does not grow with the number of images

# what they make of an image does not depend on chance
DETERMINISTIC = (v2.Resize, v2.CenterCrop, v2.Pad, v2.Grayscale, v2.RGB, v2.Normalize, v2.ToDtype, v2.ToImage)


def plan_stages(trainer: Trainer, dense: int, distill: int) -> tuple[int, int]:
    """Let the trainer run both stages; the user's own limit is honoured or refused, never replaced.

    Returns:
        The epochs of stage 1 and 2: those given, or for ``fast_dev_run`` one of each, of as many batches as it says.

    Raises:
        ValueError: If the trainer's limit of epochs does not fit, or its strategy cannot train two stages.
    """
    loop = trainer.fit_loop
    if trainer.fast_dev_run:
        dense, distill = min(dense, 1), 1
        loop.epoch_loop.max_steps = -1
        loop.max_epochs = dense + distill
    else:
        other_limit = trainer.max_steps != -1 or any(isinstance(callback, Timer) for callback in trainer.callbacks)
        loop.max_epochs = plan_epochs(dense, distill, loop.max_epochs, other_limit)
    logger.info("Training %d epochs: dense fine-tuning %d, distillation %d.", loop.max_epochs, dense, distill)
    told = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters")
    if dense and isinstance(trainer.strategy, DDPStrategy) and not told:
        msg = (
            "Each stage trains other parameters, which DDP has to be told: pass "
            "--trainer.strategy ddp_find_unused_parameters_true (or dense_epochs=0)."
        )
        raise ValueError(msg)
    return dense, distill


def make_optimizer(model: DefendModel, dense_lr: float, head_lr: float, student_lr: float) -> AdamW:
    """One AdamW with a group for each stage and part: parameters without gradient are left as they are."""
    groups = [
        {**group, "lr": student_lr, "betas": (0.9, 0.95)}
        for group in param_groups_weight_decay(nn.ModuleList([model.student, model.student_heads]), weight_decay=0.05)
    ]
    blocks = [parameter for parameter in model.teacher.parameters() if parameter.requires_grad]
    if blocks:  # there is a stage 1
        groups += [
            {"params": blocks, "lr": dense_lr, "weight_decay": 1e-2},
            {"params": list(model.head.parameters()), "lr": head_lr, "weight_decay": 1e-2},
        ]
    optimizer = AdamW(groups, fused=model.head.prototypes.device.type in {"cpu", "cuda"})
    optimizer._step_supports_amp_scaling = False  # Lightning unscales the gradients, and may clip them then
    return optimizer


class StageSwitch(Callback):
    """Enter the stage of each epoch.

    In stage 1 the student is untrained: no validation, and no early stopping on what it would have logged. Stage 2
    needs no optimizer state of stage 1, which is neither kept in memory nor saved.
    """

    def __init__(self) -> None:
        self._entered: int | None = None  # the epoch
        self._set_aside: dict[str, Any] | None = None  # what the trainer gets back, by attribute

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Defend) -> None:
        """Enter the stage of this epoch."""
        self._enter(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Defend, *_args: object) -> None:
        """Enter the stage of this epoch, where a run was resumed in its middle."""
        self._enter(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Defend, exception: BaseException) -> None:
        """Give the trainer its validation back when a training fails or is interrupted."""
        del pl_module, exception
        self._take_validation_up(trainer)

    def teardown(self, trainer: Trainer, pl_module: Defend, stage: str) -> None:
        """Give the trainer its validation back."""
        del pl_module, stage
        self._take_validation_up(trainer)

    def _enter(self, trainer: Trainer, model: Defend) -> None:
        epoch = trainer.current_epoch
        if self._entered == epoch:
            return
        self._entered = epoch
        model.model.teacher.eval()
        dense, distill = model.stage_epochs
        if model.in_dense_stage:
            self._set_validation_aside(trainer)
            logger.info("Stage 1, dense fine-tuning: epoch %d of %d.", epoch + 1, dense)
        else:
            self._take_validation_up(trainer)
            for parameter in [*model.model.teacher.parameters(), *model.model.head.parameters()]:
                trainer.optimizers[0].state.pop(parameter, None)
            logger.info("Stage 2, distillation: epoch %d of %d.", epoch - dense + 1, distill)

    def _set_validation_aside(self, trainer: Trainer) -> None:
        if self._set_aside is None:
            self._set_aside = {"limit_val_batches": trainer.limit_val_batches, "callbacks": trainer.callbacks}
            trainer.limit_val_batches = 0
            trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, EarlyStopping)]

    def _take_validation_up(self, trainer: Trainer) -> None:
        if self._set_aside is not None:
            for name, value in self._set_aside.items():
                setattr(trainer, name, value)
            self._set_aside = None


class TeacherPass(Callback):
    """Compute what the teacher makes of each training image, once, before the first step of stage 2.

    What it keeps goes to the teacher cache; what stands for the whole images becomes their prototypes, if the score
    compares with such. All images, in their own order and in batches of that order: nothing depends on the epoch in
    which a run was resumed, nor on the number of processes, which take the batches in turns.

    Args:
        place: Where the cache may be.
    """

    def __init__(self, place: CachePlace) -> None:
        self._place: CachePlace = place  # one of the four; "auto" until the training starts
        self._layout: CacheLayout | None = None
        self._file: Path | None = None  # on disk, to be removed
        self._done = False

    def on_train_start(self, trainer: Trainer, pl_module: Defend) -> None:
        """Decide and announce, before the first epoch.

        Raises:
            ValueError: If the cache does not fit where it is wanted, or there is no loader to read the images from.
        """
        pl_module.teacher_cache = None
        self._done = False
        if pl_module.model.normal_prototypes is not None and not isinstance(trainer.train_dataloader, DataLoader):
            msg = "score='prototypes' reads the training images from one torch DataLoader: give a datamodule."
            raise ValueError(msg)
        reason = 'teacher_cache="off"' if self._place == "off" else why_not(trainer, pl_module)
        place: CachePlace = "off"
        if not reason:
            self._layout = pl_module.model.cache_layout(len(trainer.train_dataloader.dataset))
            place = choose_place(self._place, self._layout.bytes, disk_folder(trainer))
            reason = f"{self._layout} are too much for what is free"
        self._place = trainer.strategy.broadcast(place)  # one process decides for all
        if self._place == "off":
            logger.info("Teacher cache: off (%s). The teacher runs in every step of stage 2.", reason)
        else:
            where = f"in memory ({RAM})" if self._place == "ram" else f"in {disk_folder(trainer)}"
            logger.info("Teacher cache: %s %s.", self._layout, where)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Defend, batch: Any, batch_idx: int) -> None:
        """Run before the first step of stage 2, wherever a run was resumed."""
        del batch, batch_idx
        if self._done or pl_module.in_dense_stage:
            return
        self._done = True
        cache, to_fill = self._open(trainer, pl_module) if self._place != "off" else (None, False)
        prototypes = pl_module.model.normal_prototypes
        to_fit = prototypes is not None and not prototypes.fitted
        if to_fill or to_fit:
            start = time.monotonic()
            features = run_teacher(trainer, pl_module, cache if to_fill else None)
            if to_fill and self._file is not None and trainer.local_rank == 0:
                with suppress(FileNotFoundError):  # another run has filled the same file, and given it its name
                    self._file.with_suffix(".part").replace(self._file)
            if to_fit:
                number = PROTOTYPES_PER_CATEGORY * (num_normal_categories(trainer) or 1)
                number = max(1, min(number, len(features) // 4))
                pl_module.model.fit_normal_prototypes(features, number)
                logger.info("%d prototypes of the normal images, from %d of them.", number, len(features))
            logger.info("The teacher has seen the training images, in %.1f s.", time.monotonic() - start)
        pl_module.teacher_cache = cache

    def on_fit_end(self, trainer: Trainer, pl_module: Defend) -> None:
        """Remove the cache of a training that has ended by itself."""
        pl_module.teacher_cache = None
        if self._file is not None and trainer.local_rank == 0:
            self._file.unlink(missing_ok=True)
            with suppress(OSError):  # another run's is in it
                self._file.parent.rmdir()

    def on_exception(self, trainer: Trainer, pl_module: Defend, exception: BaseException) -> None:
        """Let go of the cache; a complete one on disk stays, for the resumed run."""
        del trainer, exception
        pl_module.teacher_cache = None

    def _open(self, trainer: Trainer, model: Defend) -> tuple[TeacherCache, bool]:
        """Map the cache's file into every process; and whether it has to be filled."""
        assert self._layout is not None  # noqa: S101 - for the type checker
        dataset, strategy, first = trainer.train_dataloader.dataset, trainer.strategy, trainer.local_rank == 0
        paths = list(dataset.samples.image_path)
        if self._place == "ram":
            file = RAM / strategy.broadcast(f"anomalib-defend-{uuid.uuid4().hex}")
        else:
            how = (repr(self._layout), model.hparams.feature_norm, model.pre_processor, dataset.augmentations)
            where = (trainer.train_dataloader.batch_size, trainer.precision, model.device.type)
            key = fingerprint(model.model.teacher.state_dict(), paths, *how, *where)
            folder, key = strategy.broadcast((disk_folder(trainer), key))
            self._file = file = folder / f"{key}-{trainer.node_rank}.features"

        part = file.with_suffix(".part")
        complete = file.is_file()
        strategy.barrier()  # everyone has looked
        if first and not complete:
            reserve(part, self._layout.bytes)
        strategy.barrier()  # it is there
        cache = TeacherCache(file if complete else part, paths, self._layout)
        strategy.barrier()  # everyone has mapped it
        if first and self._place == "ram":
            part.unlink()
        if complete:
            logger.info("Teacher cache: %s is complete.", file)
        return cache, not complete


def run_teacher(trainer: Trainer, model: Defend, cache: TeacherCache | None) -> torch.Tensor:
    """Fill the cache, if there is one, and return what stands for the whole images.

    Returns:
        Their ``pooled`` features [M, D] on the CPU, from all processes, of at most ``MAX_FEATURES`` images, evenly
        spread. Empty if the score needs none.
    """
    dataset = trainer.train_dataloader.dataset
    if not_deterministic(getattr(dataset, "augmentations", None)):  # then there is no cache
        dataset = without_augmentations(dataset, model)
    stride = -(-len(dataset) // MAX_FEATURES)
    own: dict[int, torch.Tensor] = {}
    batches = own_batches(trainer, model, dataset)
    if trainer.fast_dev_run and cache is None:
        batches = islice(batches, trainer.num_training_batches)
    for rows, batch in batches:
        with trainer.precision_plugin.train_step_context():
            output = model.model.teacher_output(batch.image, guide=cache is not None and model.model.is_guided)
        if cache is not None:
            cache.write(rows.start, output)
        if output.pooled is not None:
            own.update({row: output.pooled[row - rows.start].float().cpu() for row in rows if row % stride == 0})
    trainer.strategy.barrier()  # all rows are written
    if cache is not None and trainer.local_rank == 0:
        cache.flush()
    parts = [own]
    if trainer.world_size > 1:
        parts = [{}] * trainer.world_size
        distributed.all_gather_object(parts, own)
    features = {row: vector for part in parts for row, vector in part.items()}
    return torch.stack([features[row] for row in sorted(features)]) if features else torch.empty(0)


def num_normal_categories(trainer: Trainer) -> int | None:
    """Number of categories that are normal, if the datamodule tells."""
    return getattr(getattr(trainer, "datamodule", None), "num_normal_categories", None)


def why_not(trainer: Trainer, model: Defend) -> str:
    """Why the teacher's output cannot be kept, or need not be; empty if it can."""
    loader, strategy = trainer.train_dataloader, trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return f"{type(strategy).__name__} splits the teacher over the processes"
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, AnomalibDataset):
        return "the training data are no anomalib dataset of image files"
    augmentations = [
        *not_deterministic(loader.dataset.augmentations),
        *not_deterministic(getattr(model.pre_processor, "transform", None)),
    ]
    if augmentations:
        return f"the training images are augmented by {', '.join(augmentations)}"
    # as planned, not what is left: a resumed run goes on as the first one did
    epochs = trainer.max_epochs - model.stage_epochs[0]
    images = len(loader.dataset)
    per_epoch = min(images, trainer.num_training_batches * trainer.world_size * (loader.batch_size or 1))
    if epochs * per_epoch < 2 * images:
        return "stage 2 sees the images less than twice"
    return ""


def not_deterministic(transform: Any) -> list[str]:
    """Names of the transforms whose result may depend on chance."""
    if transform is None or type(transform) in DETERMINISTIC:
        return []
    if type(transform) is v2.Compose:
        return [name for part in transform.transforms for name in not_deterministic(part)]
    return [type(transform).__name__]


def disk_folder(trainer: Trainer) -> Path:
    """Beside the folders ``v0``, ``v1`` ... that anomalib numbers the runs with: a resumed run has another number."""
    root = Path(trainer.default_root_dir)
    return (root.parent if re.fullmatch(r"v\d+", root.name) else root) / "teacher_cache"
