"""MkDocs' hooks: what lies beside docs/ and belongs to the site becomes a page of it, and links lead there.

A document links to others by their place in the repository, which is right in a clone and where the repository is
looked at. On the site the READMEs of the package's models are pages, and YAML files of ``configs`` can be downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anomalib_defend"
PAGES = {
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "SECURITY.md": "security.md",
    PACKAGE / "benchmark" / "configs" / "README.md": "comparisons.md",
    **{readme: f"models/{readme.parent.name}.md" for readme in sorted((PACKAGE / "models").glob("*/README.md"))},
}
DOWNLOADS = sorted((ROOT / "configs").rglob("*.yaml"))
LINK = re.compile(r"(\]\()(?!\w+:)([^)#\s]+)([^)]*\))")
CODE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents beside docs/."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=source.read_text(encoding="utf-8")))
    for source in DOWNLOADS:
        files.append(File.generated(config, source.relative_to(ROOT).as_posix(), content=source.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = next((path for path, target in PAGES.items() if target == here), Path(config.docs_dir) / here)

    def translate(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match[2]))
        if path.is_relative_to(config.docs_dir):
            target = path.relative_to(config.docs_dir).as_posix()
        elif path in PAGES:
            target = PAGES[path]
        elif path in DOWNLOADS:
            target = path.relative_to(ROOT).as_posix()
        else:
            return match[0]  # `--strict` names it
        return f"{match[1]}{os.path.relpath(target, Path(here).parent)}{match[3]}"

    parts = CODE.split(markdown)  # every second one is a block of code
    return "".join(part if number % 2 else LINK.sub(translate, part) for number, part in enumerate(parts))
