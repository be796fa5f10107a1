"""Processes for tests, forked from one that has imported everything: anomalib takes seconds to import each time."""

import faulthandler
import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parent
PRELOADED = ["anomalib.cli.cli", "anomalib.engine", "anomalib_defend.data", "anomalib_defend.models", "encoders"]
SECONDS = 500
CONTEXT = multiprocessing.get_context("forkserver")


def start(function: Callable[..., object], *arguments: object, **environment: str) -> Any:
    """Call a function of an importable module in a process that has this one's folder and environment, but one thread.

    Args:
        function: Called with ``arguments``; what it prints is what `wait` shows where it fails.
        arguments: Can be pickled.
        environment: Variables beyond those of this process.
    """
    variables = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [TESTS / "models", TESTS, TESTS.parent / "src"])),
        "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment,
    }  # fmt: skip
    with mock.patch.dict(os.environ, variables):  # of the server, where it does not run yet
        CONTEXT.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as output:
        process = CONTEXT.Process(target=_become, args=(function, arguments, variables, Path.cwd(), output.name))
    process.output = Path(output.name)  # type: ignore[attr-defined]
    process.start()
    return process


def wait(process: Any) -> int:
    """The exit status; negative for a signal."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    told = process.output.read_text()
    process.output.unlink()
    if process.exitcode:
        print(told[-3000:])
    return process.exitcode


def run(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a process of its own, which has to succeed."""
    assert wait(start(function, *arguments)) == 0


def run_ranks(ranks: int, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in as many processes, which Lightning's trainer joins into one run, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        processes.append(start(function, *arguments, LOCAL_RANK=str(rank), NODE_RANK="0", **common))
        time.sleep(0.2)  # anomalib's `create_versioned_dir` ends with an error where two take the same number at once
    assert [wait(process) for process in processes] == [0] * ranks


def anomalib(*arguments: object) -> None:
    """anomalib's command line."""
    from anomalib.cli.cli import main

    sys.argv = ["anomalib", *map(str, arguments)]
    main()


def _become(
    function: Callable[..., object], arguments: tuple[Any, ...], variables: Mapping[str, str], folder: Path, output: str
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(SECONDS - 10)  # where it hangs
    importlib.import_module("encoders")  # the server may be one that a comparison has started, without PRELOADED
    function(*arguments)
