"""Run the parts one after the other, print their tables, and keep what is measured in a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch

from anomalib_defend.benchmark.machine import describe

from .report import Options

PARTS = ("training", "memory", "inference", "profile", "peers", "data", "ddp", "scaling", "jobs")
QUICK_PARTS = ("training", "memory", "inference", "data", "jobs")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m measurements.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 minutes on 2 cores: DeiT-Tiny, fewer repeats and parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--json", type=Path, help="figures by name; written after every part, kept by later runs")
    parser.add_argument("--plot", type=Path, help="where the part scaling saves its plot")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--backbones", nargs="+", help="timm ViTs; the first one gives the figures without a name")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, help="rounds in which the contenders take turns")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of images of the part scaling")
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine, with --threads 1")
    parser.add_argument("--images", type=Path, help="folder of photographs, instead of generated ones")
    return parser.parse_args(arguments)


def make_options(arguments: argparse.Namespace) -> Options:
    """What was given, and the defaults of a quick or full run."""
    quick = Options(quick=True, backbones=Options.backbones[:1], batch=16, repeats=4)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    given.update({name: tuple(given[name]) for name in ("backbones", "counts") if name in given})
    defaults = vars(quick) if arguments.quick else {}
    return Options(**{**defaults, **{name: given[name] for name in vars(quick) if name in given}})


def keep(file: Path | None, figures: dict[str, object]) -> None:
    """Add figures to the file, which is complete at any time."""
    if file is None:
        return
    old = json.loads(file.read_text()) if file.exists() else {}
    part = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps({**old, **figures}, indent=2) + "\n")
    part.replace(file)


def main() -> int:
    """Run; a part that fails is told, keeps what it has measured, and does not stop the others."""
    arguments = parse()
    options = make_options(arguments)
    torch.set_num_threads(options.threads)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes that are started: anomalib's own imports
    machine = describe(options.threads)
    print(
        f"Machine: {machine}. Batch {options.batch}, medians of {options.repeats} rounds, "
        f"{'CPU' if options.cpu_time else 'elapsed'} time.",
        flush=True,
    )
    keep(arguments.json, {"machine": machine})
    failed = []
    for name in arguments.parts or (QUICK_PARTS if options.quick else PARTS):
        start = time.perf_counter()
        print(f"\n### {name}", flush=True)
        try:
            for result in import_module(f".{name}", __package__).run(options):
                keep(arguments.json, result.figures)
                if result.markdown:
                    print(f"\n{result.markdown}", flush=True)
        except Exception:  # the other parts go on
            traceback.print_exc()
            failed.append(name)
        print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
