"""What ``anomalib-defend`` offers beside anomalib's own command line: a line of ``COMMANDS`` and a module each.

A command's module has two functions, ``add_arguments(parser)`` and ``run(options) -> exit status``. It is imported when
its command is named, and imports what is heavy (torch, anomalib) when it runs: ``--help`` takes a fraction of a second.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from anomalib_defend._autoload import is_console
from anomalib_defend._version import __version__
from anomalib_defend.console import install, show, wants_traceback, worded

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "benchmark": "compare models by a YAML file, and make tables and plots of it",
    "report": "make one page for a browser of a finished test or predict",
    "score": "score any number of images, and go on where a killed run stopped",
    "threshold": "tell a model's threshold and what to expect of it, move it, or compute it anew",
    "app": "open a page on this machine: drop images, see what a model says of them, move the threshold",
    "example": "write the embedded example's scenes of handwritten digits",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error that we foresaw is a sentence on the screen.

    Args:
        arguments: The command line, by default the process's own.

    Returns:
        The exit status: 0, what the command returns, or 1 after an error; the parser exits with 2.
    """
    if is_console():
        install()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser(arguments).parse_args(arguments)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # of anomalib's own imports
            return _module(options.command).run(options[options.command])
    except Exception as error:
        ours = worded(error) or (error if isinstance(error, ValueError | OSError | ModuleNotFoundError) else None)
        if ours is None or wants_traceback():
            raise
        show(ours)
        return 1


def make_parser(arguments: Sequence[str]) -> ArgumentParser:
    """A parser that knows all commands by name, and of the one that is named the arguments."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    parser = ArgumentParser(
        prog="anomalib-defend",
        description="What anomalib-defend offers beside anomalib's own `anomalib train --model Defend ...`.",
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command")
    for name, summary in COMMANDS.items():
        command = ArgumentParser(description=f"{summary[0].upper()}{summary[1:]}.")
        commands.add_subcommand(name, command, help=summary)  # first: jsonargparse wants levels in order
        if name == named:
            _module(name).add_arguments(command)
    return parser


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
