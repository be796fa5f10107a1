"""Every model, small: one line each. `test_every_model.py` holds all of them to one list."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback
from smallest_model import MeanFeature

import forked
import miniatures
from anomalib_defend import (
    DN2,
    FCDD,
    KDAD,
    MSAD,
    PANDA,
    ARNet,
    DeepSVDD,
    Defend,
    Fitymi,
    ObjectPrototypes,
    SemanticFolder,
    Transformaly,
    UniAD,
)
from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.uniad import torch_model as uniad
from anomalib_defend.nn import dense_prototypes
from encoders import MINIATURE, MINIATURE_VGG

SMALL_NETWORKS = (  # Defend's head would be most of every checkpoint
    (dense_prototypes, "HIDDEN_DIM", 32),
    (dense_prototypes, "EMBED_DIM", 16),
    (uniad, "WIDTH", 16),
    (uniad, "NUM_LAYERS", 1),
)
VIT = {"backbone": MINIATURE, "pre_trained": False}
TWO_STAGES = {**VIT, "dense_epochs": 1, "distill_epochs": 2, "student_lr": 1e-3, "seed": 0}
SMALL_UNIAD = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 128}
FAKES = {"stop_step": 3, "generator_size": 8, "generator_channels": (8, 8), "sampling_steps": 2, "num_fakes": 6}


class Row(NamedTuple):
    """A model and the arguments that make it small; the name of a variant has no hyphen, as `conftest.py` needs it."""

    model: type[NoveltyDetectorMixin]
    arguments: Mapping[str, Any]
    variant: str = ""
    public: bool = True
    exports_map: bool = True  # if there is one

    @property
    def name(self) -> str:
        return f"{self.model.__name__}{self.variant}"

    @property
    def seeded(self) -> bool:
        return "seed" in self.arguments

    def build(self, chance: int = 0, **changed: Any) -> NoveltyDetectorMixin:
        """The model, after which the random state is that of ``chance``: it is to decide nothing.

        Where there is no seed, it decides the random weights of an encoder, which stand for pretrained ones.
        """
        torch.manual_seed(100 + chance if self.seeded else 0)
        model = self.model(**{**self.arguments, **changed})
        torch.manual_seed(100 + chance)
        return model


OUTLIERS = str(Path(__file__).parent / "outliers")
ROWS = (
    Row(Defend, TWO_STAGES),
    Row(
        Defend,
        {**TWO_STAGES, "score": "attended_distance", "attention_block": 2, "views": "whole+centre"},
        "_attended",
    ),
    Row(Fitymi, {**VIT, **FAKES, "classifier_epochs": 2, "seed": 0}),
    Row(ARNet, {"image_size": 32, "width": 2, "epochs": 2, "seed": 0}),
    Row(DN2, VIT),
    Row(ObjectPrototypes, VIT),
    Row(ObjectPrototypes, {**VIT, "views": "whole+corners", "head": "neighbors"}, "_neighbors"),
    Row(KDAD, {**VIT, "epochs": 2, "seed": 0}),
    Row(KDAD, {**VIT, "backbone": MINIATURE_VGG, "epochs": 2, "seed": 0}, "_vgg", exports_map=False),
    Row(MSAD, {**VIT, "epochs": 2, "seed": 0}),
    Row(PANDA, {**VIT, "epochs": 2, "seed": 0}),
    Row(Transformaly, {**VIT, "epochs": 2, "seed": 0}),
    Row(DeepSVDD, {"image_size": 16, "pretrain_epochs": 1, "epochs": 2, "seed": 0}),
    Row(
        FCDD,
        {
            **VIT,
            "backbone": MINIATURE_VGG,
            "outlier_dir": OUTLIERS,
            "epochs": 2,
            "seed": 0,
        },
    ),
    Row(FCDD, {"image_size": 16, "epochs": 2, "seed": 0}, "_from_scratch"),
    Row(UniAD, {**SMALL_UNIAD, "epochs": 2, "seed": 0}),
    Row(MeanFeature, VIT, public=False),
)


def make_data(folder: Path, **kwargs: Any) -> SemanticFolder:
    """Seven normal training images, one to validate, whose names are not UTF-8; they are written at the first call."""
    if not folder.is_dir():
        miniatures.write_folder(folder)
        for path in (folder / "cat").iterdir():
            path.rename(path.with_name(os.fsdecode(b"%b\xfc.png" % path.stem.encode())))
    return SemanticFolder(folder, **{"category": "cat", "num_workers": 0, "train_batch_size": 4, **kwargs})


def make_engine(folder: Path, **kwargs: Any) -> Engine:
    """A silent one."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(**{"default_root_dir": folder, "accelerator": "cpu", "devices": 1, **quiet, **kwargs})


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all tensors."""
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def differing(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bits; NaN is NaN."""
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or first[name].shape != second[name].shape
        or not torch.allclose(first[name].double(), second[name].double(), rtol=0, atol=0, equal_nan=True)
    )


def arguments_of(model: NoveltyDetectorMixin) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's, and its post-processor's."""
    return dict(model.hparams), model.post_processor.checkpoint_config()


def with_other_arguments(ckpt: Path, path: Path) -> Path:
    """A checkpoint of the same weights that was trained with others."""
    content = torch.load(ckpt, weights_only=True)
    arguments = content["hyper_parameters"]
    arguments.update({name: value for name, value in {"target_fpr": 0.9, "seed": 5}.items() if name in arguments})
    content["anomalib_post_processor_config"].update(target_fpr=0.9, image_sensitivity=0.7)
    torch.save(content, path)
    return path


def has_own_threshold(model: NoveltyDetectorMixin, folder: Path, data: SemanticFolder, **options: Any) -> bool:
    """Whether there is a threshold, which is that of the weights as they are: a validation changes nothing."""
    if model.post_processor.image_threshold.isnan():
        return False
    before = state_of(model.post_processor)
    make_engine(folder, **options).validate(model, datamodule=data, verbose=False)
    assert not differing(before, state_of(model.post_processor)), "the threshold of other weights"
    return True


class At(Callback):
    """Do something before the last batch of an epoch."""

    def __init__(self, epoch: int, action: Any) -> None:
        self.epoch, self.action = epoch, action

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == trainer.num_training_batches - 1:
            self.action(pl_module)


def kill(_model: NoveltyDetectorMixin) -> None:
    """As the machine does that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def checkpoints(folder: Path) -> list[Path]:
    """From the oldest to the newest."""
    return sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def stop(_model: NoveltyDetectorMixin) -> None:
    """As an error would."""
    msg = "stopped by the test"
    raise RuntimeError(msg)


def train(name: str, folder: Path, *, kill_in: int | None = None, ckpt_path: Path | None = None, **engine: Any) -> None:
    """One training of a row, for a process of its own; its state lies in ``folder`` afterwards.

    Where it is one of several, they test the model, too.

    Args:
        name: The row's.
        folder: Of images, runs and states.
        kill_in: Epoch in which the process dies.
        ckpt_path: To go on from.
        engine: What `make_engine` takes.
    """
    torch.set_num_threads(1)
    for place, constant, value in SMALL_NETWORKS:
        setattr(place, constant, value)
    (row,) = (row for row in ROWS if row.name == name)
    model = row.build(chance=2)
    callbacks = [] if kill_in is None else [At(kill_in, kill)]
    trained = make_engine(folder / "runs", callbacks=callbacks, **engine)
    trained.fit(model, datamodule=make_data(folder / "images"), ckpt_path=ckpt_path)
    rank = trained.trainer.global_rank
    torch.save(state_of(model), folder / f"rank{rank}.pt")
    if trained.trainer.world_size > 1:
        (metrics,) = trained.test(model, datamodule=make_data(folder / "images"), verbose=False)
        torch.save(metrics, folder / f"metrics{rank}.pt")


def command_line(*arguments: object) -> None:
    """anomalib's, with the small head of the rows."""
    for place, constant, value in SMALL_NETWORKS:
        setattr(place, constant, value)
    forked.anomalib(*arguments)
