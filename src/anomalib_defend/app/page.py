"""The page: Gradio on the loopback address, which sends nothing elsewhere and reads nothing but what was dropped."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from anomalib_defend.files.names import is_image

from .judging import Judge, Judged
from .view import HEAD, View, view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradio import Blocks

LOOPBACK = "127.0.0.1"
PORT = 7860
MOST_IMAGES = 200
MOST_BYTES = 20 * 2**20  # of a file
CHECKED, KEPT = 600, 3600  # seconds after which the folder is looked at, and a dropped file is removed
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class Policy:
    """ASGI middleware: the browser refuses what the page would ask of another machine.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the header to every answer."""

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", _POLICY)]
            await send(message)

        await self._app(scope, receive, answer)


def judged(judge: Judge, paths: Sequence[str], folder: Path, before: Sequence[Judged] = ()) -> list[Judged]:
    """What the model says of dropped files; of those that it has seen ``before``, the same.

    Args:
        judge: The model.
        paths: Files as the browser names them.
        folder: Where dropped files are; others are refused.
        before: What is known already.
    """
    known = {one.path: one for one in before}
    result = []
    for path in dict.fromkeys(map(Path, paths[:MOST_IMAGES])):
        if not path.resolve().is_relative_to(folder.resolve()):
            result.append(Judged(Path(path.name), error="it is no file that was dropped here"))
        elif not is_image(path.name):
            result.append(Judged(path, error="its name is not that of an image that anomalib reads"))
        else:
            result.append(known.get(path) or judge(path))
    return result


def build(judge: Judge, folder: Path) -> Blocks:
    """The page of a model; dropped files are in ``folder``."""
    import gradio as gr  # noqa: PLC0415 - optional extra, and seconds

    calibration = judge.calibration
    least = min(0.001, calibration.target_fpr)

    def outputs(found: View) -> tuple[Any, ...]:
        return found.sentence, found.promise, found.table, found.pictures

    def dropped(paths: list[str] | None, target_fpr: float, before: list[Judged]) -> tuple[Any, ...]:
        paths = paths or []
        if len(paths) > MOST_IMAGES:
            gr.Warning(f"The first {MOST_IMAGES} of {len(paths)} images are scored: use `anomalib predict` for more.")
        now = judged(judge, paths, folder, before)
        return now, *outputs(view(now, calibration.moved(target_fpr), judge.map_note))

    def moved(target_fpr: float, now: list[Judged]) -> tuple[Any, ...]:
        return outputs(view(now, calibration.moved(target_fpr), judge.map_note))

    empty = view([], calibration)
    with gr.Blocks(analytics_enabled=False, title="anomalib-defend", delete_cache=(CHECKED, KEPT)) as page:
        gr.Markdown("# Does this image still show what the model was trained on?")
        state = gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                files = gr.File(label="Images", file_count="multiple", file_types=["image"], elem_id="files")
                target = gr.Slider(
                    minimum=least,
                    maximum=max(0.5, calibration.target_fpr),
                    step=least,
                    value=calibration.target_fpr,
                    label="Threshold: share of new normal images that may be called novel (target_fpr)",
                    elem_id="target",
                )
                promise = gr.Textbox(
                    empty.promise, label="What to expect", lines=6, interactive=False, elem_id="promise"
                )
            with gr.Column(scale=2):
                sentence = gr.Textbox(empty.sentence, label="Verdict", interactive=False, elem_id="verdict")
                pictures = gr.Gallery(label="Pictures", columns=2, elem_id="pictures", object_fit="contain", buttons=[])
        table = gr.Dataframe(headers=list(HEAD), datatype="str", interactive=False, elem_id="table", wrap=True)
        shown = [sentence, promise, table, pictures]
        files.change(dropped, [files, target, state], [state, *shown], api_visibility="private")
        target.change(
            moved, [target, state], shown, api_visibility="private", trigger_mode="always_last", show_progress="hidden"
        )
    return page


def serve(model: Path, host: str = LOOPBACK, port: int | None = None, *, block: bool = True) -> Blocks:
    """Open the page of a model on this machine.

    Args:
        model: As for `judging.Judge`.
        host: Address that it is reached by; the default is reached from this machine alone.
        port: Of the address; the first free one from 7860 on by default.
        block: Return when it is interrupted; otherwise at once, and closing the returned page ends it.

    Raises:
        ModuleNotFoundError: If Gradio is not installed.
        OSError: If the port is taken.
    """
    judge = Judge(model)
    folder = TemporaryDirectory(prefix="anomalib-defend-app-")  # dropped files and pictures, gone at the end
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder.name,
        "GRADIO_SHARE": "False", "GRADIO_ALLOWED_PATHS": "", "GRADIO_MCP_SERVER": "False",
    }  # fmt: skip
    try:
        import gradio as gr  # noqa: PLC0415 - optional extra
        from starlette.middleware import Middleware  # noqa: PLC0415 - Gradio's own
    except ModuleNotFoundError as error:
        msg = f"The app needs {error.name}: pip install 'anomalib-defend[app]'"
        raise ModuleNotFoundError(msg, name=error.name) from error
    page = build(judge, Path(folder.name))
    page.folder = folder  # lives as long as the page
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,  # or it offers a public link
        max_file_size=MOST_BYTES,
        allowed_paths=[],
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        app_kwargs={"middleware": [Middleware(Policy)], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    print(f"The page: {page.local_url} (images stay on this machine; Ctrl+C ends it)", flush=True)
    if block:
        page.block_thread()
    return page
