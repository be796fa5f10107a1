"""A page: one HTML file with everything in it, which no script or picture of elsewhere can join."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from anomalib_defend._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

_PARTS = files(__package__) / "page_parts"


def write_page(out: Path, name: str, data: dict[str, Any], **values: Any) -> None:
    """Write a page; one that is there is replaced.

    Args:
        out: The page.
        name: Of its template and its script in ``page_parts``, without endings.
        data: What the script needs.
        values: What the template needs; all of them become text.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        draft.write_text(_rendered(name, data, values), encoding="utf-8", errors="backslashreplace")
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def _rendered(name: str, data: dict[str, Any], values: dict[str, Any]) -> str:
    style, script = _part("page.css"), _part("gallery.js") + _part(f"{name}.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_part)
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; "
        "form-action 'none'"
    )
    return environment.get_template(f"{name}.html.j2").render(
        style=style, script=script, policy=policy, data=_embedded(data), version=__version__, **values
    )


def _part(name: str) -> str:
    return _PARTS.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names the one text that is allowed."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _embedded(data: dict[str, Any]) -> str:
    """JSON that ends no element of a page, whatever is in it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
