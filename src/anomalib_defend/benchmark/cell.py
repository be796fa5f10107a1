"""One cell: anomalib's benchmark pipeline with one job, in a process and folder of its own."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import Batch
from anomalib.models import AnomalibModule
from anomalib.pipelines import Benchmark
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.pipelines.components.runners import SerialRunner
from anomalib.utils.config import flatten_dict
from lightning.pytorch import Callback, Trainer, seed_everything

from anomalib_defend.files.names import to_text
from anomalib_defend.post_processing.processes import categories_of

from .build import build
from .machine import describe, peak_gib

JOB, LOG, SCORES, MEASURED = "job.yaml", "log.txt", "scores.csv", "measured.json"


class Measure(Callback):
    """Keep what the pipeline's CSV lacks: each test image's score, and what the model costs.

    The scores are the model's own, before the post-processor: anomalib's scales and clamps them. What the image is
    called is known after it.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._start = 0.0
        self.labels = _Labels()

    def on_test_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._rows.clear()
        self.labels.called.clear()
        self._start = time.perf_counter()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: Batch, *args: object, **kwargs: object
    ) -> None:
        """Take the scores of a batch."""
        del trainer, pl_module, args, kwargs
        scores = outputs.pred_score
        if scores is None:  # anomalib's post-processor does the same
            scores = torch.amax(outputs.anomaly_map, dim=(-2, -1))
        paths = list(map(to_text, outputs.image_path))  # neither pyarrow's strings nor the file take what is not UTF-8
        columns = {"image_path": paths, "label": outputs.gt_label.flatten().int().tolist()}
        columns["score"] = scores.flatten().double().tolist()
        self._rows += pd.DataFrame(columns).to_dict("records")

    def on_test_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Write the files."""
        seconds = time.perf_counter() - self._start
        scores = pd.DataFrame(self._rows)
        if len(self.labels.called) == len(scores):  # a model may have no labels
            scores["called"] = self.labels.called
        categories = categories_of(trainer.test_dataloaders)
        if len(categories) == len(scores):  # the order of a test is that of the data
            scores["categories"] = [categories[position] for position in range(len(scores))]
        scores.to_csv(SCORES, index=False)
        measured = {
            "images_per_second": len(self._rows) / seconds,  # reading the files and computing the metrics included
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            "peak_memory_gb": peak_gib(),
            "machine": describe(torch.get_num_threads()),
        }
        if pl_module.device.type == "cuda":
            measured["machine"] = f"{torch.cuda.get_device_name()}; {measured['machine']}"
            measured["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        Path(MEASURED).write_text(json.dumps(measured, indent=2))


class _Labels(Callback):
    """Keep whether each test image is called novel, 1, or normal, 0."""

    def __init__(self) -> None:
        self.called: list[int] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: Batch, *args: object, **kwargs: object
    ) -> None:
        """Take the labels of a batch."""
        del trainer, pl_module, args, kwargs
        if outputs.pred_label is not None:
            self.called += outputs.pred_label.flatten().int().tolist()


class CellJobs(BenchmarkJobGenerator):
    """Anomalib's jobs, built after the seed is set and with objects among the arguments; and measured."""

    def generate_jobs(self, args: dict[str, Any], previous_stage_result: Any) -> Generator[BenchmarkJob, None, None]:
        """Yield the one job of a cell."""
        del previous_stage_result
        seed_everything(args["seed"], workers=True)
        model = build("model", args["model"])
        configure_callbacks, measure = model.configure_callbacks, Measure()
        # in front of the post-processor, and behind it
        model.configure_callbacks = lambda: [measure, *configure_callbacks(), measure.labels]
        yield BenchmarkJob(self.accelerator, model, build("data", args["data"]), args["seed"], flatten_dict(args))


class CellPipeline(Benchmark):
    """Anomalib's pipeline on one device."""

    @staticmethod
    def _setup_runners(args: dict[str, Any]) -> list[SerialRunner]:
        return [SerialRunner(CellJobs(args["accelerator"]))]


class _FirstError(logging.Handler):
    """The pipeline logs exceptions and goes on: keep the first."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.error is None:
            self.error = record.exc_info[1]


def _end_with_parent() -> None:
    """End when the driver does, in whichever way."""
    if (driver := multiprocessing.parent_process()) is not None:
        driver.join()
        os._exit(1)


def run(folder: Path, environment: Mapping[str, str], threads: int) -> None:
    """Run the job of a folder and end the process; its exit status tells whether it worked.

    Args:
        folder: Holds ``job.yaml``; everything is left there, the output as ``log.txt``.
        environment: The variables of the process, which may be forked from one that has others.
        threads: torch threads.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "setsid"):  # not on Windows: what the terminal interrupts is the driver
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for output in (1, 2):
        os.dup2(log, output)
    torch.set_num_threads(threads)
    sys.exit(_run_job())


def _run_job() -> int:
    first = _FirstError()
    logging.getLogger().handlers = [first, logging.StreamHandler(sys.stdout)]
    CellPipeline().run(Namespace(config=JOB))
    error = first.error
    if error is None:
        return 0
    while error.__cause__ is not None:  # the pipeline wraps it
        error = error.__cause__
    sys.stdout.flush()
    traceback.print_exception(error)
    return 1
