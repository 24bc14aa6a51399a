"""A real chat endpoint on this machine, whose answers a test makes up."""

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the server sends; status 0: it hangs up."""

    status: int
    text: str = ""
    headers: dict[str, str] = {}


class Request(NamedTuple):
    """What the server was sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def completion(text: str | None) -> Reply:
    """The answer of a model, as OpenAI's endpoint wraps it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return Reply(200, json.dumps({"object": "chat.completion", "choices": [choice]}))


class ChatServer:
    """Runs until it is closed.

    Attributes:
        url: its base url.
        requests: all that it was sent.
        reply: makes the reply to a request's body.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self.reply: Callable[[dict[str, Any]], Reply] = lambda _: completion("a cat")
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                request = Request(self.path, dict(self.headers), json.loads(data))
                outer.requests.append(request)
                reply = outer.reply(request.body)
                if not reply.status:
                    return
                text = reply.text.encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that has gone

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def replies(self, *replies: Reply) -> None:
        """Sends these in turn, the last one again and again."""
        left = list(replies)
        self.reply = lambda _: left.pop(0) if len(left) > 1 else left[0]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
