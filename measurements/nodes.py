"""Two nodes train what one process trains: how far apart are they, and does the order of summation explain it?

``python -m measurements.nodes`` trains on the embedded example, by two launches of ``torchrun --nnodes 2`` on the
loopback address, and in one process on the same global batches: `Defend` (both stages, with the teacher's cache), `DN2`
(a memory) and `ObjectPrototypes` (prototypes). Then both test, and tables and states are compared. Chance is the same:
one process draws for each half of a batch what the process of that half draws; drop path is off.

The measure of what the order of summation explains is a third run: one process, in which the images of each batch stand
in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.engine import Engine
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_defend import DN2, Defend, ObjectPrototypes, SemanticVOC
from anomalib_defend.benchmark.machine import describe
from anomalib_defend.decision.table import read_table
from anomalib_defend.example.scenes import write_voc

from .speed.report import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODES = 2
BATCH = 8  # of each node
CROPS = 4
DEFEND: Any = import_module("anomalib_defend.models.defend.torch_model")
ENCODER = "vit_digits_patch8_96"
RUNS = ("one process", "another order", "two nodes")


def make_model(name: str, cache: Any) -> Any:
    """The model that all runs train."""
    if name == "Defend":
        epochs: dict[str, Any] = {"dense_epochs": 1, "distill_epochs": 2}
        return Defend(
            ENCODER, num_crops=CROPS, student_lr=1e-3, seed=0, teacher_cache=cache, visualizer=False, **epochs
        )
    return {"DN2": DN2, "ObjectPrototypes": ObjectPrototypes}[name](ENCODER, visualizer=False)


class GlobalBatches(DistributedSampler[Any]):
    """The batches of all nodes together, in one process; as ``halves``, one node's images after the other's."""

    def __init__(self, dataset: Any, halves: bool) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, seed=int(os.environ.get("PL_GLOBAL_SEED", "0")))
        self._halves = halves

    def __iter__(self) -> Iterator[Any]:
        """Yield the images' numbers."""
        order, step = list(super().__iter__()), NODES * BATCH
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            yield from batch if not self._halves else [i for node in range(NODES) for i in batch[node::NODES]]


class OneProcessVOC(SemanticVOC):
    """The example's images, in `GlobalBatches`."""

    halves = False

    def train_dataloader(self) -> DataLoader[Any]:
        """As anomalib's, with another sampler."""
        own = super().train_dataloader()
        sampler = GlobalBatches(own.dataset, self.halves)
        return DataLoader(own.dataset, batch_size=NODES * BATCH, sampler=sampler, collate_fn=own.collate_fn)


def same_chance(run: str) -> None:
    """Draw boxes and masks for each node's half of a batch from a random state of its own, in whatever process."""
    rank = int(os.environ.get("RANK", "0"))
    calls = [0]

    def in_nodes(images: int, draw: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        calls[0] += 1
        if run == "two nodes":
            torch.manual_seed(NODES * calls[0] + rank)
            return draw(slice(None))
        found, half = None, images // NODES
        for node in range(NODES):
            own = slice(node * half, (node + 1) * half) if run == "another order" else slice(node, None, NODES)
            torch.manual_seed(NODES * calls[0] + node)
            part = draw(own)
            found = part.new_empty(images, *part.shape[1:]) if found is None else found
            found[own] = part
        assert found is not None  # noqa: S101 - there are nodes
        return found

    boxes, patches = DEFEND.sample_boxes, DEFEND.sample_patches

    def sample_boxes(count: int, grid: Any, scale: Any, **options: Any) -> torch.Tensor:
        each = 1 if scale == DEFEND.VIEW_SCALE else CROPS

        def draw(own: slice) -> torch.Tensor:
            number = len(range(count // each)[own])
            return boxes(number * each, grid, scale, **options).unflatten(0, (number, each))

        return in_nodes(count // each, draw).flatten(0, 1)

    DEFEND.sample_boxes = sample_boxes
    DEFEND.sample_patches = lambda weights, number: in_nodes(len(weights), lambda own: patches(weights[own], number))
    DEFEND.DROP_PATH_RATE = 0.0


def train(name: str, run: str, cache: str, voc: str, out: Path) -> None:
    """Train and test in this process, and save what has come of it."""
    torch.set_num_threads(1)
    same_chance(run)
    several = run == "two nodes"
    model = make_model(name, cache)
    data = (SemanticVOC if several else OneProcessVOC)(
        voc, category="three", train_batch_size=BATCH, eval_batch_size=BATCH, num_workers=0
    )
    data.halves = run == "another order"
    options: dict[str, Any] = {"num_nodes": NODES, "strategy": "ddp_find_unused_parameters_true"} if several else {}
    engine = Engine(
        default_root_dir=out,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data, verbose=False)
    rank = engine.trainer.global_rank
    torch.save(model.state_dict(), out / f"rank{rank}.pt")
    facts = {"test": len(data.test_data), "train": len(data.train_data), "world": engine.trainer.world_size}
    (out / f"rank{rank}.json").write_text(json.dumps(facts))


def launch(name: str, run: str, cache: str, voc: Path, out: Path) -> None:
    """Train in processes of their own: one, or by a launch of torchrun for each node."""
    out.mkdir(parents=True)
    arguments = ["-m", "measurements.nodes", "--train", name, run, cache, str(voc), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    commands = [[sys.executable, *arguments]]
    if run == "two nodes":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        commands = [[*torchrun, "--node-rank", str(node), *arguments] for node in range(NODES)]
    processes = []
    for number, command in enumerate(commands):
        with (out / f"log{number}.txt").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))  # noqa: S603
    for number, process in enumerate(processes):
        if process.wait():
            sys.exit((out / f"log{number}.txt").read_text()[-3000:])


class Result:
    """What a run has come to."""

    def __init__(self, out: Path) -> None:
        self.states = [torch.load(path, weights_only=True) for path in sorted(out.glob("rank*.pt"))]
        self.facts = json.loads((out / "rank0.json").read_text())
        (found,) = out.rglob("test.csv")
        self.rows = read_table(found)
        self.left = len(list(out.rglob("teacher_cache")))

    def values(self) -> dict[str, torch.Tensor]:
        """All numbers, in groups."""
        groups: dict[str, list[torch.Tensor]] = {}
        for name, value in self.states[0].items():
            if value.is_floating_point():
                groups.setdefault(_group(name), []).append(value.flatten())
        found = {name: torch.cat(values) for name, values in groups.items()}
        found["test: raw scores"] = torch.tensor([row.raw_score for row in self.sorted()])
        return found

    def sorted(self) -> list[Any]:
        """The table's rows by path."""
        return sorted(self.rows, key=lambda row: row.path)


def _group(name: str) -> str:
    top, part, *_ = name.split(".")
    if top == "post_processor":
        return "calibration: normal scores" if "normal_scores" in part else "threshold and scale"
    return "prototypes" if name.endswith("prototypes") else "memory" if part == "normality" else part


def difference(values: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a share of the largest number; infinite if there are not as many."""
    if values.shape != expected.shape:
        return float("inf")
    known = expected.isfinite()
    if not torch.equal(values.isfinite(), known):
        return float("inf")
    return float((values - expected)[known].abs().max() / expected[known].abs().max()) if known.any() else 0.0


def compare(name: str, cache: str, voc: Path, folder: Path) -> str:
    """The table of one model."""
    results = {}
    for run in RUNS:
        launch(name, run, cache, voc, folder / name / run)
        results[run] = Result(folder / name / run)
    one, order, nodes = (results[run] for run in RUNS)
    assert nodes.facts["world"] == len(nodes.states) == NODES  # noqa: S101 - else nothing was measured
    rows: list[dict[str, object]] = [
        {
            name: what,
            "another order": difference(order.values()[what], expected),
            "two nodes": difference(nodes.values()[what], expected),
        }
        for what, expected in one.values().items()
    ]
    labels = [row.label for row in one.sorted()]
    others = {"another order": order, "two nodes": nodes}
    told: dict[str, Callable[[Result], object]] = {
        "test: labels that differ": lambda found: sum(
            label != row.label for label, row in zip(labels, found.sorted(), strict=True)
        ),
        f"test: rows of {one.facts['test']} images": lambda found: len(found.rows),
        "test: different ones": lambda found: len({row.path for row in found.rows}),
        "caches left on the disk": lambda found: found.left,
    }
    rows += [{name: what, **{run: tell(found) for run, found in others.items()}} for what, tell in told.items()]
    first, second = (state.values() for state in nodes.states)
    equal = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))
    told_of_both = "the same bits" if equal else "DIFFERENT STATES"
    return f"{table(rows)}\n\n{one.facts['train']} training images. Both nodes have {told_of_both}."


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser("python -m measurements.nodes", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["Defend", "DN2", "ObjectPrototypes"])
    parser.add_argument("--cache", default="disk", choices=["disk", "ram", "off"], help="of the teacher of Defend")
    parser.add_argument("--train", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        name, run, cache, voc, out = arguments.train
        train(name, run, cache, voc, Path(out))
        return
    print(f"Machine: {describe(1)}. Largest differences to one process, as shares of the largest number.", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        voc = write_voc(folder / "data", normal="three", seed=0)
        for name in arguments.models:
            print(f"\n{compare(name, arguments.cache, voc, folder)}", flush=True)


if __name__ == "__main__":
    main()
