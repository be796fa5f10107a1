"""Trainings that are killed at random moments and resumed, beside one that nothing has interrupted.

``python -m measurements.reliability.kill --runs 20``

Needs neither network nor data: a small model learns scenes of handwritten digits. Each training is a process of its
own, which is sent SIGKILL: it can neither catch it nor clean up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_defend.data import SemanticVOC
from anomalib_defend.example.encoder import MODEL_NAME
from anomalib_defend.example.scenes import write_voc
from anomalib_defend.models import Defend

DENSE_EPOCHS, DISTILL_EPOCHS = 2, 2
STAGES = ("stage 1", "stage boundary", "stage 2")
TOLERANCE = 1e-6
LONGEST_DELAY = 0.2  # seconds after the start of a step: it may be over, and its epoch validated or being saved


class Kill(NamedTuple):
    """One killed and resumed training."""

    moment: str
    """What the process was doing."""
    resumed_from: str
    """Checkpoint of which epoch, counted from 0."""
    weights: float
    """Largest absolute difference of a weight from the uninterrupted run."""
    scores: float
    """Largest absolute difference of a test image's raw score."""


class Reporter(Callback):
    """Tells the parent process what comes next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_train_batch_start(self, trainer: Trainer, _model: LightningModule, _batch: Any, batch_idx: int) -> None:
        """A step."""
        self.pipe.send(("step", trainer.current_epoch, batch_idx, trainer.num_training_batches))

    def on_validation_start(self, trainer: Trainer, _model: LightningModule) -> None:
        """The validation of an epoch of stage 2."""
        self.pipe.send(("validation", trainer.current_epoch, 0, 1))

    def on_save_checkpoint(self, trainer: Trainer, _model: LightningModule, _checkpoint: dict[str, Any]) -> None:
        """A checkpoint that is about to be written."""
        self.pipe.send(("saving", trainer.current_epoch, 0, 1))


def train(root: Path, out: Path, ckpt_path: Path | None, pipe: Connection) -> None:
    """Train, or go on training, and write weights and scores to ``out/result.pt``."""
    torch.set_num_threads(1)
    with (out / "log.txt").open("a") as log:  # also what torch and Lightning print themselves
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    model = Defend(
        MODEL_NAME, image_size=48, dense_epochs=DENSE_EPOCHS, distill_epochs=DISTILL_EPOCHS, dense_lr=1e-3,
        student_lr=1e-3, seed=0, visualizer=False,
    )  # fmt: skip
    data = SemanticVOC(root, category="three", train_batch_size=8, num_workers=0)
    engine = Engine(
        default_root_dir=out, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        callbacks=[Reporter(pipe)],
    )  # fmt: skip
    engine.fit(model, datamodule=data, ckpt_path=ckpt_path)
    batches = engine.predict(model, datamodule=data)
    result = {"weights": model.state_dict(), "scores": torch.cat([batch.raw_score for batch in batches])}
    torch.save(result, out / "result.pt")


def draw_moment(stage: str, number_of_steps: int, rng: random.Random) -> tuple[int, int, float]:
    """Epoch, step and seconds after that step's start at which to kill."""
    epoch, step, delay = DENSE_EPOCHS - 1, number_of_steps - 1, rng.uniform(0, LONGEST_DELAY)
    if stage != "stage boundary":
        step = rng.randrange(number_of_steps)
        first = 0 if stage == "stage 1" else DENSE_EPOCHS
        epoch = first + rng.randrange(DENSE_EPOCHS if stage == "stage 1" else DISTILL_EPOCHS)
    return epoch, step, delay


class Killer:
    """Starts trainings and kills them.

    Args:
        folder: Receives the data and everything that the trainings write.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.rng = random.Random(seed)  # noqa: S311 - nothing secret
        self.root = write_voc(folder, num_train=32, num_test=16)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["anomalib.engine", "anomalib_defend.models"])  # imported once
        self.number_of_steps = 0
        self.reference = self.finish(self._folder("reference"), None)

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def finish(self, out: Path, ckpt_path: Path | None) -> dict[str, Any]:
        """Train to the end; returns weights and scores.

        Raises:
            RuntimeError: If the training fails, with the end of its output.
        """
        events, exit_code = self._run(out, ckpt_path)
        if exit_code != 0:
            msg = f"The training in {out} failed:\n{(out / 'log.txt').read_text()[-3000:]}"
            raise RuntimeError(msg)
        self.number_of_steps = self.number_of_steps or events[0][-1]
        return torch.load(out / "result.pt", weights_only=True)

    def _run(
        self, out: Path, ckpt_path: Path | None, moment: tuple[int, int, float] | None = None
    ) -> tuple[list[tuple[str, int, int, int]], int | None]:
        """Train in a process, to the end or to the moment; returns what it has reported, and its exit code."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=train, args=(self.root, out, ckpt_path, sender))
        process.start()
        sender.close()
        events = []
        try:
            while True:
                events.append(receiver.recv())
                kind, epoch, step, _ = events[-1]
                if moment and kind == "step" and (epoch, step) == moment[:2]:
                    time.sleep(moment[2])
                    os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type] # it has been started
        except EOFError:  # the process has ended
            process.join()
        return events, process.exitcode

    def run(self, number: int) -> Kill:
        """Kill one training, check what it leaves, and resume it.

        Raises:
            RuntimeError: If a checkpoint is damaged or the resumed training fails.
        """
        out, exit_code = self._folder(f"run{number}"), None
        while exit_code != -signal.SIGKILL:  # it may have ended before
            moment = draw_moment(STAGES[number % len(STAGES)], self.number_of_steps, self.rng)
            events, exit_code = self._run(out, None, moment)
        saved = sorted(out.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        ckpt_path = saved[-1] if saved else None
        epoch = torch.load(ckpt_path, weights_only=True)["epoch"] if ckpt_path else None
        result = self.finish(out, ckpt_path)
        kind, last_epoch, step, steps = events[-1]
        where = f", step {step + 1} of {steps}" if kind == "step" else ""
        return Kill(
            moment=f"{kind}, epoch {last_epoch} (stage {1 if last_epoch < DENSE_EPOCHS else 2}){where}",
            resumed_from="scratch" if epoch is None else f"epoch {epoch}",
            weights=max(
                (result["weights"][name].double() - value.double()).nan_to_num().abs().max().item()
                for name, value in self.reference["weights"].items()
            ),
            scores=(result["scores"] - self.reference["scores"]).abs().max().item(),
        )


def main() -> None:
    """Print a line a run and the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    print("| run | killed during | resumed from | largest difference of a weight | of a score |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), arguments.seed)
        kills = []
        for number in range(arguments.runs):
            kill = killer.run(number)
            kills.append(kill)
            print(
                f"| {number + 1} | {kill.moment} | {kill.resumed_from} | {kill.weights:g} | {kill.scores:g} |",
                flush=True,
            )
    good = sum(max(kill.weights, kill.scores) <= TOLERANCE for kill in kills)
    print(f"\n{good} of {len(kills)} resumed trainings end within {TOLERANCE:g} of the uninterrupted one.")
    raise SystemExit(good < len(kills))


if __name__ == "__main__":
    main()
