"""Whatever the trainer is told, two options at a time: the last finished epoch is on disk, with a threshold of its own.

Or the run has said no.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from every_model import ROWS, checkpoints, differing, has_own_threshold, make_data, make_engine, state_of
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import callbacks as lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException

MODELS = {row.name: row for row in ROWS if row.name in {"Defend", "ARNet", "MeanFeature"}}
NOTHING = "No checkpoint will be written"
NO_THRESHOLD = "No normal image was validated with the weights that this training ends with"
OF_VALIDATION = ("limit_val_batches", "overfit_batches", "precision")


def stop_early(**options: Any) -> list[Callable[..., lightning.Callback]]:
    """Early stopping after the first epoch that is no better, which none is."""
    return [lambda _: lightning.EarlyStopping(**{"patience": 1, "min_delta": 1e9, "strict": False, **options})]


def own(*kinds: dict[str, Any], of: type = ModelCheckpoint) -> list[Callable[..., lightning.Callback]]:
    """Checkpoint callbacks of the user, in folders of their own."""
    return [
        lambda folder, kind=kind, number=number: of(dirpath=folder / f"own{number}", **kind)
        for number, kind in enumerate(kinds)
    ]


# by option: its values; "checkpoints" and "stopping" become callbacks
OPTIONS: dict[str, list[Any]] = {
    "check_val_every_n_epoch": [2, 3, 7, None],
    "val_check_interval": [0.5, 1, 2, 0.25],
    "limit_train_batches": [1, 0.5, 0],
    "limit_val_batches": [0, 1, 5, 0.5],
    "limit_test_batches": [0],
    "max_time": ["00:00:00:00", {"milliseconds": 1}, {"milliseconds": 30}, {"hours": 1}],
    "max_steps": [0, 1, 2, 3, 100],
    "min_steps": [1, 100],
    "max_epochs": [-1, 0, 1, 2, 3, 100],
    "min_epochs": [1, 3],
    "num_sanity_val_steps": [-1, 2],
    "overfit_batches": [1, 0.5],
    "accumulate_grad_batches": [2, 5],
    "gradient_clip_val": [0.0, 0.1],
    "enable_checkpointing": [True, False],
    "reload_dataloaders_every_n_epochs": [1],
    "log_every_n_steps": [1],
    "deterministic": [True],
    "precision": ["bf16-mixed"],
    "barebones": [True],
    "checkpoints": [
        own({"monitor": "val_score", "mode": "max"}),
        own({"monitor": "val_score", "save_weights_only": True}, {"every_n_train_steps": 1, "save_top_k": -1}),
        own({"every_n_train_steps": 1}),
        own({"every_n_train_steps": 2, "save_on_train_epoch_end": True}),
        own({"train_time_interval": timedelta(0)}),
        own({"every_n_epochs": 2}),
        own({"save_top_k": 0}),
        own({"save_top_k": -1, "save_last": "link", "monitor": "val_score"}),
        own({"save_top_k": 2, "monitor": "val_score", "save_on_train_epoch_end": True}),
        own({"save_top_k": 2, "monitor": "val_score", "save_on_train_epoch_end": False, "save_last": True}),
        own({"every_n_train_steps": 1}, of=lightning.ModelCheckpoint),
        own({"filename": "alone"}, of=lightning.OnExceptionCheckpoint),
    ],
    "stopping": [
        stop_early(monitor="val_score"),
        stop_early(monitor="val_score", check_on_train_epoch_end=True),
        stop_early(monitor="loss_epoch", patience=0, check_on_train_epoch_end=True),
        [lambda _: lightning.Timer(timedelta(milliseconds=1), interval="epoch")],
    ],
}


@st.composite
def pairs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sampled_from(list(combinations(OPTIONS, 2))))
    return {name: draw(st.sampled_from(OPTIONS[name])) for name in names}


class Begun(lightning.Callback):
    """Notes the first step: what is said later is said too late."""

    steps = 0

    def on_train_batch_start(self, *_args: object) -> None:
        self.steps += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    make_data(folder / "images")
    return folder


@pytest.mark.slow
@given(name=st.sampled_from(sorted(MODELS)), told=pairs())
def test_the_last_finished_epoch_is_on_disk(folder: Path, name: str, told: dict[str, Any]) -> None:
    runs = folder / "runs" / str(len(list((folder / "runs").glob("*"))))
    begun, said = Begun(), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((begun.steps, record.getMessage()))  # type: ignore[method-assign]
    callbacks = [make(runs) for name in ("checkpoints", "stopping") for make in told.get(name, ())]
    options = {name: value for name, value in told.items() if name not in {"checkpoints", "stopping"}}
    model = MODELS[name].build()
    logging.getLogger("anomalib_defend").addHandler(handler)
    try:
        engine = make_engine(runs, callbacks=[begun, *callbacks], **options)
        engine.fit(model, datamodule=make_data(folder / "images", train_batch_size=2))
    except (MisconfigurationException, ValueError, RuntimeError):
        if begun.steps:  # too late
            raise
        return
    finally:
        logging.getLogger("anomalib_defend").removeHandler(handler)
    validation = {name: value for name, value in options.items() if name in OF_VALIDATION}
    has_threshold = has_own_threshold(model, runs / "validation", make_data(folder / "images"), **validation)
    assert model.untrained or has_threshold != any(NO_THRESHOLD in sentence for _, sentence in said)
    if any(NOTHING in sentence and not steps for steps, sentence in said):
        return
    assert begun.steps, "nothing was trained, and nothing said"
    saved = [torch.load(path, weights_only=True) for path in checkpoints(runs)]
    complete = [checkpoint["state_dict"] for checkpoint in saved if "optimizer_states" in checkpoint]
    assert any(not differing(state_of(model), state) for state in complete), "not the last epoch"
    assert not model.trained_steps[-1] or not model.untrained
