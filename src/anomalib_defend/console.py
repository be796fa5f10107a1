"""What the two console scripts, ``anomalib`` and ``anomalib-defend``, show on the screen.

In their processes alone (``_autoload.is_console``), :func:`install` sees to four things, through hooks that Python and
its logging offer:

- Each line of this package's log is printed once. ``anomalib.loggers.configure_logger`` gives the root logger two
  handlers for the screen; where it has both, this package's lines pass them by.
- An error that this package raises is its sentence, the last line on the screen.
- A misspelt option, class or command gets the nearest names.
- What the terminal's encoding cannot show is written as an escape.

A program of a user's own keeps its logging, its ``sys.excepthook`` and its tracebacks.
"""

from __future__ import annotations

import atexit
import dis
import io
import logging
import os
import re
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, TracebackType

TRACEBACK = "ANOMALIB_DEFEND_TRACEBACK"
FORESEEN = (ValueError, TypeError, OSError, RuntimeError, ImportError, FloatingPointError)

_PACKAGE = Path(__file__).parent
_PARSER_LOGGER = "jsonargparse_null_logger"  # where a parser that was given no logger tells of its errors
_RAISE = dis.opmap["RAISE_VARARGS"]


def install() -> None:
    """See to log lines, errors and misspelt names in this process, once."""
    logger = logging.getLogger(__package__)
    if any(isinstance(handler, _Screen) for handler in logger.handlers):
        return
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: a name that the terminal cannot show ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    logger.addHandler(_Screen())
    logging.getLogger(_PARSER_LOGGER).addHandler(_Misspelt(logging.ERROR))
    others = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        ours = None if wants_traceback() else worded(error)
        if ours is None:
            others(kind, error, traceback)
        else:
            show(ours)

    sys.excepthook = excepthook


def wants_traceback() -> bool:
    """Whether the user asks for tracebacks of foreseen errors, too."""
    return os.environ.get(TRACEBACK) == "1"


def show(error: BaseException) -> None:
    """Print an error's sentence on ``stderr``, as the last line."""
    sentence = str(error) or type(error).__name__
    print(f"({TRACEBACK}=1 shows where this was raised.)\nerror: {sentence}", file=sys.stderr, flush=True)


def worded(error: BaseException) -> BaseException | None:
    """Return the error that a ``raise`` of this package has worded, or ``None`` if there is none.

    What torch finds wrong in a line of ours is no such thing. A parser that makes an object of a type with several
    alternatives (a model, or none) raises an error of its own, with what each of them has raised as an argument. A
    process that reads images for torch's loader sends its error as text.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not isinstance(error, FORESEEN):
        return None
    code = last.tb_frame.f_code
    if Path(code.co_filename).is_relative_to(_PACKAGE):
        return error if code.co_code[last.tb_lasti] == _RAISE else None
    wrapped: Any = last.tb_frame.f_locals.get("self")
    if type(wrapped).__name__ == "ExceptionWrapper":
        return _of_worker(wrapped.exc_type, wrapped.exc_msg)
    alternatives = last.tb_frame.f_locals.get("exceptions") if _is_parser(code) else None
    found = [worded(inner) for inner in alternatives or () if isinstance(inner, BaseException)]
    return next(filter(None, found), None)


def _of_worker(kind: type[BaseException], told: str) -> RuntimeError | None:
    """The error at the end of a printed traceback, if a ``raise`` of this package has worded it."""
    *_, file, code = ["", *re.split(r'^  File "(.+)", line \d+, in .+\n', told, flags=re.MULTILINE)]
    found = re.match(rf"    raise .*?^(?:\w+\.)*{kind.__qualname__}: (.*)", code, re.DOTALL | re.MULTILINE)
    return RuntimeError(found[1].strip()) if found and Path(file).is_relative_to(_PACKAGE) else None


def _is_parser(code: CodeType) -> bool:
    return "jsonargparse" in Path(code.co_filename).parts


class _Screen(logging.Handler):
    """Prints this package's records where the root logger would print each twice or none; repeated warnings once."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        self._warned: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Decide anew for each record: logging is configured after this package has been imported."""
        handlers = logging.getLogger().handlers
        plain = [handler for handler in handlers if type(handler) is logging.StreamHandler]
        rich = [handler for handler in handlers if type(handler).__module__ == "rich.logging"]
        doubled = bool(plain and rich)
        logging.getLogger(__package__).propagate = not doubled  # which logging reads after this handler
        if handlers and not doubled:
            return  # without any, Python's last resort is not asked, since this handler is there
        for handler in handlers:
            if handler not in {*plain, *rich} and record.levelno >= handler.level:
                handler.handle(record)
        if record.levelno >= logging.WARNING:
            known = (record.name, record.getMessage())
            if known in self._warned:
                return
            self._warned.add(known)
        # looked up now: a progress bar on the screen takes stderr's place, and makes room for the line
        print(self.format(record), file=sys.stderr, flush=True)


class _Misspelt(logging.Handler):
    """Reads a parser's last words, and names what they may have meant when the process ends, below them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Ask, if the parser gives up; it also tries in vain what it then reads in another way."""
        parser = _parser_that_exits()
        question = "" if parser is None else questions(record.getMessage(), parser)
        if question:
            atexit.register(lambda: print(question.strip(), file=sys.stderr, flush=True))


def _parser_that_exits() -> Any:
    """The parser in whose ``error`` this is called, unless it only raises."""
    frame = sys._getframe().f_back
    while frame is not None:
        parser: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "error" and hasattr(parser, "exit_on_error"):
            return parser if parser.exit_on_error else None
        frame = frame.f_back
    return None


def questions(message: str, parser: Any = None) -> str:
    """What the misspelt names in a parser's message may have meant, each with a space in front.

    Args:
        message: The parser's.
        parser: With the options of its command line, if there is one.
    """
    return "".join(sorted(set(_questions(message, parser))))


def _questions(message: str, parser: Any) -> Iterator[str]:
    for words in re.findall(r"Unrecognized arguments: (.*)", message):
        for option in re.findall(r"(?:^|\s)(--[^\s=]+)", words):
            yield did_you_mean(option, _options(parser))
    refused = r"Problem with given class_path '([\w.]+)'.*?Option '([\w.]+)' is not"
    for path, option in re.findall(refused, message, re.DOTALL):
        module, _, name = path.rpartition(".")
        yield did_you_mean(option, signature(getattr(import_module(module), name)).parameters)
    for wrong, known in re.findall(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
        yield did_you_mean(wrong, re.findall(r"[^\s',]+", known))
    for module, name in re.findall(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        yield did_you_mean(name, getattr(sys.modules.get(module), "__all__", ()))
    for name in re.findall(r"Expected a dot import path string: ([\w.]+)", message):
        known = [sys.modules[part].__all__ for part in ("anomalib.models", "anomalib.data") if part in sys.modules]
        yield did_you_mean(name, (each for names in known for each in names))


def _options(parser: Any) -> Iterator[str]:
    """All options of a parser and its subcommands."""
    for action in getattr(parser, "_actions", ()):
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _options(command)
