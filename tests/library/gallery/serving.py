"""A web server on this machine, as a host of files is, with the faults of real ones."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FileHost:
    """url: where it is. files: by path, beside those of `folder`. redirects, statuses (errors): by path. whole: paths
    without ranges.

    cuts: after how many bytes the next answers for a path break off. held: answers for a path that wait, after so many bytes, until
    the event is set. asked: (path, range) of each request.
    """

    url: str = ""
    folder: Path | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    statuses: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    held: dict[str, tuple[int, threading.Event, threading.Event]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def content(self, path: str) -> bytes | None:
        if path in self.files:
            return self.files[path]
        place = self.folder / unquote(path).lstrip("/") if self.folder else None
        return place.read_bytes() if place and place.is_file() else None


@contextmanager
def file_host(folder: Path | None = None, host: str = "127.0.0.1") -> Iterator[FileHost]:
    state = FileHost(folder=folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked = self.headers.get("Range", "")
            state.asked.append((path, asked))
            if path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = state.content(path)
            if content is None or path in state.statuses:
                self.send_error(state.statuses.get(path, 404))
                return
            self._send(path, content, re.fullmatch(r"bytes=(\d+)-(\d*)", asked))

        def _send(self, path: str, content: bytes, asked: re.Match[str] | None) -> None:
            begin, end, status = 0, len(content), 200
            if asked and path not in state.whole:
                begin, status = int(asked[1]), 206
                end = min(end, int(asked[2]) + 1) if asked[2] else end
            if begin >= len(content) and status == 206:
                self.send_error(416)
                return
            own = {"Content-Length": str(end - begin)}
            if status == 206:
                own["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            self.send_response(status)
            for name, value in {**own, **state.headers.get(path, {})}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            body = content[begin:end]
            if path in state.held:
                count, arrived, released = state.held[path]
                self.wfile.write(body[:count])
                self.wfile.flush()
                arrived.set()
                released.wait(120)
                body = body[count:]
            if state.cuts.get(path):
                self.wfile.write(body[: state.cuts[path].pop(0)])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *given: object) -> None:
            """Clients leave in the middle of an answer."""

    server = Quiet((host, 0), Handler)
    state.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)
