"""Compare models: run a comparison's cells, or report what they have brought.

``python -m anomalib_defend.benchmark run configs/benchmark/reduced.yaml --set weights=... voc=...``
``python -m anomalib_defend.benchmark report configs/benchmark/reduced.yaml --out table.md --plots plots``

``configs/benchmark/README.md`` explains the YAML files. A cell (model x data x category x seed) is finished once it was
run with the same settings and versions, and is then not run again; a failed one is. What is in the files of images and
weights is not looked at: remove a cell's folder to run it again. ``report`` reads what ``run`` has left in the folder
of results, not the YAML file.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison.plan import Comparison

RESULTS = Path("runs/benchmark")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m anomalib_defend.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are missing")
    run.add_argument("config", type=Path, help="YAML file of a comparison")
    run.add_argument(
        "--set",
        nargs="+",
        type=_assignment,
        default=[],
        metavar="NAME=VALUE",
        help="replace values under variables: in the file",
    )
    run.add_argument("--results", type=Path, help=f"folder of the results; default: {RESULTS}/<name of the file>")
    run.add_argument("--jobs", type=_positive, default=1, help="cells side by side")
    run.add_argument("--threads", type=_positive, default=1, help="torch threads of each cell")
    run.add_argument("--dry-run", action="store_true", help="only print the cells and the time budget")
    report = commands.add_parser("report", help="tables and plots of the finished cells")
    report.add_argument("results", type=Path, nargs="+", help="folder(s) of results, or their YAML file(s)")
    report.add_argument("--out", type=Path, help="Markdown file; default: the screen")
    report.add_argument("--plots", type=Path, help="folder of the plots")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        msg = f"{text!r} is not NAME=VALUE"
        raise argparse.ArgumentTypeError(msg)
    return name, value


def run(arguments: argparse.Namespace) -> int:
    """Check everything, run what is missing, and tell what has failed."""
    from .comparison.build import check, complete  # noqa: PLC0415 - the help needs no torch
    from .comparison.driver import run as run_cells  # noqa: PLC0415
    from .comparison.plan import load, save  # noqa: PLC0415

    comparison = complete(load(arguments.config, dict(arguments.set)))
    if arguments.results is None:
        _check_same_file(comparison, RESULTS / comparison.name)
    print(f"Checking models, weights and data of {len(comparison.cells)} cells.", flush=True)
    sizes = check(comparison)
    folder = arguments.results or RESULTS / comparison.name
    if not arguments.dry_run:
        save(comparison, folder)
    failed = run_cells(
        comparison,
        sizes,
        folder,
        jobs=arguments.jobs,
        threads=arguments.threads,
        dry_run=arguments.dry_run,
        echo=lambda line: print(line, flush=True),
    )
    for cell, error in failed.items():
        print(f"FAILED {cell}: {error}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} cell(s) failed; their logs are in {folder}/*/log.txt.", file=sys.stderr)
    return 1 if failed else 0


def _check_same_file(comparison: Comparison, folder: Path) -> None:
    from .comparison.plan import PLAN, ComparisonError, read_plan  # noqa: PLC0415

    before = read_plan(folder).source if (folder / PLAN).exists() else comparison.source
    if Path(before).absolute() != Path(comparison.source).absolute():
        msg = f"{folder} holds the results of {before}: name another folder with --results."
        raise ComparisonError(msg)


def report(arguments: argparse.Namespace) -> int:
    """Write tables and plots."""
    from .comparison.report import Table  # noqa: PLC0415

    folders = [path if path.is_dir() else RESULTS / path.stem for path in arguments.results]
    table = Table(folders)
    print(f"What `run` has left in {', '.join(map(str, folders))}.", file=sys.stderr)
    text = table.markdown()
    if arguments.out is None:
        print(text)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.plots is not None:
        from .comparison.plots import save_plots  # noqa: PLC0415

        for path in save_plots(table, arguments.plots):
            print(path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is one line on the screen."""
    options = parse(arguments)
    from .comparison.plan import ComparisonError  # noqa: PLC0415

    try:
        return run(options) if options.command == "run" else report(options)
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # anomalib's own imports
    sys.exit(main())
