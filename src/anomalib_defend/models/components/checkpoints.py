"""Checkpoints that every epoch leaves one of, and that say what is wrong with them."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.utils.serialization import anomalib_safe_globals
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from anomalib_defend._version import __version__
from anomalib_defend.files.names import to_text

from .guard import not_finite

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

logger = logging.getLogger(__name__)

VERSION_KEY = "anomalib_defend_version"
MODEL_KEY = "anomalib_defend_model"  # not in checkpoints of version 0.1
NORMAL_KEY = "anomalib_defend_normal"  # as the datamodule of the training names it


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", mmap: bool = False, extra_safe_globals: Sequence[Any] = ()
) -> dict[str, Any]:
    """Read a local checkpoint: tensors and plain data alone, no code.

    Args:
        path: The .ckpt file.
        map_location: As for ``torch.load``.
        mmap: Leave the tensors in the file until they are used: enough to see what the file is.
        extra_safe_globals: Types that may be in it, beyond anomalib's own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, is damaged, or holds code.
    """
    where, path = f"ckpt_path={str(path)!r}", Path(path)
    if not path.is_file():
        what = "is a folder, not a .ckpt file" if path.is_dir() else "does not exist"
        msg = f"{where} {what} (working directory {Path.cwd()})."
        raise FileNotFoundError(msg)
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # torch reads on, whatever the check sums say
        damage = f"the check sum of {wrong} is wrong" if wrong else ""
    except zipfile.BadZipFile as error:
        msg = f"{where} is no checkpoint, or only a part of one: give a .ckpt file that a finished epoch has left."
        raise ValueError(msg) from error
    except Exception as error:  # many types, for damaged headers
        damage = reason(error)
    if damage:
        msg = f"{where} is damaged ({damage}): take another copy of it, or train anew."
        raise ValueError(msg)
    mmap = mmap and to_text(str(path)) == str(path)  # torch maps no file whose name is not UTF-8
    try:
        with anomalib_safe_globals(extra=extra_safe_globals):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        msg = (
            f"{where} is refused: it holds Python objects, whose code would run when they are loaded. Checkpoints of "
            "this package hold tensors and plain data alone."
        )
        raise ValueError(msg) from error
    except (EOFError, RuntimeError) as error:
        msg = f"{where} is damaged ({reason(error)}): take another copy of it, or train anew."
        raise ValueError(msg) from error
    if not (isinstance(checkpoint, dict) and {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()):
        msg = f"{where} is no checkpoint of a training: weights of a teacher are given with weights=."
        raise ValueError(msg)
    return checkpoint


def renamed(checkpoint: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Give tensors of an older version, whose names begin with one of ``names``, the names that they have now."""
    state = checkpoint["state_dict"]
    for old, new in names.items():
        for name in [name for name in state if name.startswith(old)]:
            state[new + name.removeprefix(old)] = state.pop(name)


def verify_content(
    checkpoint: Mapping[str, Any], models: Sequence[str], tensor: str, arguments: Collection[str]
) -> None:
    """Check that a checkpoint is of the right model, names its networks' arguments, and holds finite weights.

    Args:
        checkpoint: What ``read_checkpoint`` returns.
        models: Name of the model, and of those that it derives from.
        tensor: A tensor, or how tensors' names begin, that the checkpoints of this model hold, and those of no other.
        arguments: Names of the arguments that its networks are built from.

    Raises:
        ValueError: If it is not.
    """
    state, model, of = checkpoint["state_dict"], models[0], checkpoint.get(MODEL_KEY)
    if not any(name.startswith(tensor) for name in state) or of not in {None, *models}:
        but = f", but of {of}" if of not in {None, *models} else ""
        msg = f"ckpt_path is not a checkpoint of {model}{but}: train one with `anomalib train --model {model} ...`."
        raise ValueError(msg)
    absent = sorted(set(arguments) - checkpoint.get("hyper_parameters", {}).keys())
    if absent:
        raise ValueError(_other_version(checkpoint, f"it lacks {', '.join(absent[:3])}"))
    damaged = not_finite(state)
    if damaged:
        msg = f"The weights in ckpt_path hold NaN or infinity ({', '.join(damaged[:3])}): give another checkpoint."
        raise ValueError(msg)


def verify_components(checkpoint: Mapping[str, Any], components: Mapping[str, nn.Module]) -> None:
    """Check that pre- and post-processor are of the kind that the checkpoint holds the settings of.

    Raises:
        ValueError: If one is not.
    """
    for key, component in components.items():
        config: dict[str, Any] = getattr(component, "checkpoint_config", dict)()
        if checkpoint.get(key, config).keys() != config.keys():
            name = type(component).__name__
            msg = f"ckpt_path was trained with another component than {name}: give the model the same one ({key})."
            raise ValueError(msg)


def differing(
    own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], any_size: tuple[str, ...] = ()
) -> list[str]:
    """Names of the networks' tensors that are not in both state dicts, with the same shape.

    Args:
        own: State of the model.
        saved: State of the checkpoint.
        any_size: Beginnings of the names of tensors that are loaded whatever their size.
    """
    names = sorted(name for name in own.keys() | saved.keys() if name.startswith("model."))
    return [
        name
        for name in names
        if name not in own
        or name not in saved
        or (_shape(own[name]) != _shape(saved[name]) and not name.startswith(any_size))
    ]


def _shape(value: object) -> torch.Size | None:
    return value.shape if isinstance(value, torch.Tensor) else None  # a module may have a state that is no tensor


def verify_shapes(
    checkpoint: Mapping[str, Any], own: Mapping[str, torch.Tensor], any_size: tuple[str, ...] = ()
) -> None:
    """Check that the networks built from the checkpoint's arguments are those that it was saved from.

    Raises:
        ValueError: If they are not.
    """
    names = differing(own, checkpoint["state_dict"], any_size)
    if names:
        raise ValueError(_other_version(checkpoint, f"other shapes of {', '.join(names[:3])}"))


def _other_version(checkpoint: Mapping[str, Any], difference: str) -> str:
    return (
        f"ckpt_path does not fit anomalib-defend {__version__} ({difference}); it was written by version "
        f"{checkpoint.get(VERSION_KEY, 'unknown')}: install that one, or train anew."
    )


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class LastEpoch(Checkpoint):
    """Save every finished epoch to ``last.ckpt`` where no other checkpoint callback has, to resume from.

    Others keep the best epoch alone, save after a validation alone (``check_val_every_n_epoch``), weights alone, or
    after a step, before the epoch's threshold is there (``every_n_train_steps``, ``train_time_interval``). The model is
    told which file holds its weights.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._early: list[Checkpoint] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_args: object) -> None:
        """Remember who has saved already, and will not again: validation and the end of the epoch change the model."""
        del pl_module
        self._early = [item for item in trainer.checkpoint_callbacks if _has_saved(item, trainer)]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save, after validation, early stopping and the other callbacks."""
        if trainer.fast_dev_run:
            return
        in_time = [item for item in trainer.checkpoint_callbacks if item not in self._early]
        saved = next((item for item in in_time if _has_saved(item, trainer)), None)
        if isinstance(saved, ModelCheckpoint):
            pl_module.checkpoint_file = Path(saved._last_checkpoint_saved)
            return
        if self._path is None:
            self._path = trainer.strategy.broadcast(_unused(Path(trainer.default_root_dir) / "weights" / "lightning"))
            logger.info("Each finished epoch is saved as %s, to resume from.", self._path)
        trainer.save_checkpoint(self._path)
        pl_module.checkpoint_file = self._path


def _has_saved(callback: Checkpoint, trainer: Trainer) -> bool:
    """Whether a callback keeps the last step, in a file that a training can go on from."""
    if not isinstance(callback, ModelCheckpoint) or callback.save_weights_only:
        return False
    return callback._last_global_step_saved == trainer.global_step and bool(callback._last_checkpoint_saved)


def _unused(folder: Path) -> Path:
    """``last.ckpt``, or the first ``last-v1.ckpt`` ... that does not exist: another run's is left as it is."""
    path, version = folder / "last.ckpt", 0
    while path.exists():
        version += 1
        path = folder / f"last-v{version}.ckpt"
    return path
