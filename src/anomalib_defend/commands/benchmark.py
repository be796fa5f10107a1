"""``anomalib-defend benchmark``: run a comparison's cells, or report what they have brought.

``anomalib_defend/benchmark/configs/README.md`` explains the YAML files. A cell (model x data x category x seed) is
finished once it was run with the same settings and versions, and is then not run again; a failed one is. What is in the
files of images and weights is not looked at: remove a cell's folder to run it again. ``report`` reads what ``run`` has
left in the folder of results, not the YAML file.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt, restricted_string_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from anomalib_defend.benchmark.plan import Comparison
    from anomalib_defend.benchmark.table import Table

RESULTS = Path("runs/benchmark")
PAGES = (".html", ".md")
Assignment = restricted_string_type("NAME=VALUE", "^[^=]+=.*$")


def add_arguments(parser: ArgumentParser) -> None:
    """Add ``run`` and ``report``."""
    commands = parser.add_subcommands(dest="action")
    summary = "run the cells (model x data x category x seed) that are missing"
    run = ArgumentParser(description=f"{summary.capitalize()}; killed, it goes on where it stopped.")
    run.add_argument("comparison", type=str, help="YAML file, or the name of one that the package brings: reduced")
    run.add_argument(
        "--set",
        nargs="+",
        type=Assignment,
        default=[],
        metavar="NAME=VALUE",
        help="replace values under variables: in the file",
    )
    run.add_argument("--results", type=str, help=f"folder of the results; default: {RESULTS}/<name of the file>")
    run.add_argument("--jobs", type=PositiveInt, default=1, help="cells side by side")
    run.add_argument("--threads", type=PositiveInt, default=1, help="torch threads of each cell")
    run.add_argument(
        "--dry-run", action="store_true", help="only print the cells and how long they took; needs no GPU and no files"
    )
    commands.add_subcommand("run", run, help=summary)
    summary = "tables and plots of the finished cells"
    report = ArgumentParser(description=f"{summary.capitalize()}.")
    report.add_argument("results", type=str, nargs="+", help="folders of results, or names of the YAML files")
    report.add_argument(
        "--out", type=str, help="a page for a browser (.html), or Markdown (.md); default: Markdown on the screen"
    )
    report.add_argument("--plots", type=str, help="folder of the plots")
    report.add_argument("--reference", type=str, help="the model to compare with; default: that of the YAML file")
    commands.add_subcommand("report", report, help=summary)


def run(options: Namespace) -> int:
    """Run ``run`` or ``report``."""
    chosen = options[options.action]
    return _run(chosen) if options.action == "run" else _report(chosen)


def _run(options: Namespace) -> int:
    """Check everything, run what is missing, and tell what has failed."""
    from anomalib_defend.benchmark.build import check, complete  # noqa: PLC0415 - torch and anomalib
    from anomalib_defend.benchmark.driver import run_missing, show_plan  # noqa: PLC0415
    from anomalib_defend.benchmark.expand import find, load  # noqa: PLC0415
    from anomalib_defend.benchmark.plan import save  # noqa: PLC0415
    from anomalib_defend.files.names import to_text  # noqa: PLC0415

    comparison = complete(load(find(options.comparison), dict(text.split("=", 1) for text in options.set)))
    folder = Path(options.results or RESULTS / comparison.name)
    if options.results is None:
        _check_same_file(comparison, folder)
    if options.dry_run:
        show_plan(comparison, folder, options.jobs)
        return 0
    print(f"Checking models, weights and data of {len(comparison.cells)} cells.", flush=True)
    sizes = check(comparison)
    save(comparison, folder)
    failed = run_missing(comparison, sizes, folder, jobs=options.jobs, threads=options.threads)
    for cell, error in failed.items():
        print(f"FAILED {cell}: {error}", file=sys.stderr)
    where = to_text(str(folder))
    if failed:
        print(f"{len(failed)} cell(s) failed; their logs are in {where}/*/log.txt.", file=sys.stderr)
    print(f"Results: {where}")
    following = ["anomalib-defend", "benchmark", "report", where, "--out", f"{comparison.name}.html"]
    print(f"Next: {shlex.join(following)}")
    return 1 if failed else 0


def _check_same_file(comparison: Comparison, folder: Path) -> None:
    from anomalib_defend.benchmark.plan import PLAN, ComparisonError, read_plan  # noqa: PLC0415

    before = read_plan(folder).source if (folder / PLAN).exists() else comparison.source
    if Path(before).absolute() != Path(comparison.source).absolute():
        msg = f"{folder} holds the results of {before}: name a folder with --results, another one or the same."
        raise ComparisonError(msg)


def _report(options: Namespace) -> int:
    """Write tables and plots."""
    from anomalib_defend.benchmark.report import markdown  # noqa: PLC0415 - torch and anomalib
    from anomalib_defend.benchmark.table import Table  # noqa: PLC0415
    from anomalib_defend.files.names import to_text  # noqa: PLC0415

    out = None if options.out is None else Path(options.out)
    if out is not None and out.suffix not in PAGES:
        msg = f"--out {out} must end with {' or '.join(PAGES)}."
        raise ValueError(msg)
    save_plots = None if options.plots is None else _import_plots()
    folders = [path if path.is_dir() else RESULTS / path.stem for path in map(Path, options.results)]
    table = Table(folders, options.reference)
    print(f"What `run` has left in {to_text(', '.join(map(str, folders)))}.", file=sys.stderr)
    if out is None:
        print(markdown(table))
    elif out.suffix == ".html":
        from anomalib_defend.benchmark.page import write_report  # noqa: PLC0415

        write_report(table, folders, out)
        size = out.stat().st_size / 1e6
        print(f"Written: {to_text(str(out))} ({size:.1f} MB). Open it in a browser; it needs no network.")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(table), encoding="utf-8")
        print(f"Written: {to_text(str(out))}")
    if save_plots is not None:
        for path in save_plots(table, Path(options.plots)):
            print(to_text(str(path)))
    return 0


def _import_plots() -> Callable[[Table, Path], list[Path]]:
    try:
        from anomalib_defend.benchmark.plots import save_plots  # noqa: PLC0415 - optional extra
    except ModuleNotFoundError as error:
        msg = f"--plots needs {error.name}: pip install 'anomalib-defend[benchmark]'"
        raise ModuleNotFoundError(msg, name=error.name) from error
    return save_plots
