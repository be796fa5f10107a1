"""A web server on this machine, in place of the official ones."""

from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, from the byte on that is asked for."""

    ranges = True
    cut: int | None = None  # close the connection after so many bytes
    requests: list[str | None]

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path))
        if not content.is_file():
            self.send_error(404)
            return
        body, asked = content.read_bytes(), self.headers.get("Range")
        self.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], tuple[str, type[Handler]]]]:
    """``url, handler = serve(folder)``: the folder's files below the url; attributes of the handler change it."""
    servers: list[ThreadingHTTPServer] = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def start(folder: Path) -> tuple[str, type[Handler]]:
        handler = type("Served", (Handler,), {"requests": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
