"""What the documents hold: blocks of code, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anomalib_defend"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(PACKAGE.rglob("*.md")),
]
SETTINGS = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted(PACKAGE.rglob("*.yaml"))]
MARK = r"(?:<!-- needs: (?P<needs>[a-z, ]+) -->\n)?"
FENCE = re.compile(rf"{MARK}(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)\n(?P=indent)```", re.DOTALL)
# between backquotes, in the text
PROGRAMS = "anomalib-defend|python -m|python tests|pytest|make|pip install|pip wheel"
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )?(?:{PROGRAMS}) [^`\n]+|anomalib \w+ --\w+\.help \w+)`")
COMMENT = re.compile(r"^# (?:  )?((?:anomalib|anomalib-defend|python) (?:.*\\\n#)*.*)", re.MULTILINE)
NEEDS = {"gpu", "download", "machines"}


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    needs: frozenset[str]
    language: str
    code: str


class Command(NamedTuple):
    """A command line of a document.

    Attributes:
        document: Its path in the repository.
        words: As a shell would split it, without the variables in front.
        needs: What it cannot be run without here: "gpu", "download".
        inline: Whether it stands between backquotes, and may be no more than the name of a program.
    """

    document: str
    words: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    inline: bool = False

    def __str__(self) -> str:
        """As somebody would type it."""
        return shlex.join(self.words)


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks() -> Iterator[Block]:
    """Every fenced block, with the mark in the line before it: ``<!-- needs: gpu, download -->``."""
    for document in DOCUMENTS:
        for match in FENCE.finditer(document.read_text(encoding="utf-8")):
            needs = frozenset((match["needs"] or "").replace(",", " ").split())
            yield Block(name(document), needs, match["language"], match["code"])


def command_lines() -> list[Command]:
    """Those of all ``bash`` blocks, between backquotes, and in the comments of YAML files; each once a document."""
    found = [
        Command(block.document, words, block.needs)
        for block in blocks()
        if block.language == "bash"
        for line in block.code.replace("\\\n", " ").splitlines()
        if (words := split(line))
    ]
    for document in DOCUMENTS:
        text = FENCE.sub("", document.read_text(encoding="utf-8"))
        found += [
            Command(name(document), split(line), inline=True) for line in INLINE.findall(text) if "NAME" not in line
        ]
    for file in SETTINGS:
        lines = COMMENT.findall(file.read_text(encoding="utf-8"))
        found += [Command(name(file), split(re.sub(r"\\\n#", " ", line))) for line in lines]
    return list(dict.fromkeys(found))


def split(line: str) -> tuple[str, ...]:
    """The words of a command, the last one of a pipe, without a comment and without the variables before it."""
    words = shlex.split(line, comments=True)
    while "|" in words:
        words.pop(0)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return tuple(words)
