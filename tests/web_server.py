"""A web server on this machine whose files, and whose faults, a test makes up."""

import http.server
import re
import threading
from typing import NamedTuple


class Request(NamedTuple):
    """What the server was asked for."""

    path: str
    range: str


class WebServer:
    """Serves files, and parts of them, until it is closed.

    Attributes:
        url: its address, without a slash at the end.
        files: content by path, as "/a.pth".
        tags: the ETag of a path.
        types: the Content-Type of a path.
        cuts: after how many bytes of the body to hang up: a number for each of the next
            requests, None for no cut.
        statuses: codes that the next requests are answered with, in place of files.
        sends_parts: whether it heeds Range.
        requests: all that it was asked for.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.cuts: list[int | None] = []
        self.statuses: list[int] = []
        self.sends_parts = True
        self.requests: list[Request] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range", "")
                outer.requests.append(Request(self.path, asked))
                if outer.statuses:
                    return self.send_error(outer.statuses.pop(0))
                if self.path not in outer.files:
                    return self.send_error(404)
                content, tag = outer.files[self.path], outer.tags.get(self.path)
                begin, current = 0, self.headers.get("If-Range") in (None, tag)
                if asked and outer.sends_parts and current:
                    begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                    if begin >= len(content):
                        return self.send_error(416)
                    self.send_response(206)
                    last = len(content) - 1
                    self.send_header(
                        "Content-Range", f"bytes {begin}-{last}/{len(content)}"
                    )
                else:
                    self.send_response(200)
                if tag:
                    self.send_header("ETag", tag)
                if self.path in outer.types:
                    self.send_header("Content-Type", outer.types[self.path])
                body = content[begin:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cut = outer.cuts.pop(0) if outer.cuts else None
                self.wfile.write(body[:cut])

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
