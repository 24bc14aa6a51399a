"""Answers of a chat model behind an OpenAI-compatible endpoint.

The protocol is that of `POST <base url>/chat/completions`, which vLLM, llama.cpp,
Ollama and many services offer as well as OpenAI.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from gptfl_jax import interruption
from gptfl_jax.errors import UserError

# What a server says when the same request may succeed later.
_PASSING = {408, 409, 425, 429}
_LONGEST_WAIT_S = 60.0
# A sentence with all that is said around it takes a few kilobytes.
_MOST_BYTES = 1_000_000

_REMEDIES = {
    401: "set the environment variable with the key",
    403: "set the environment variable with the key",
    404: "check config.prompts.chat_url and config.prompts.chat_model",
}


class ChatError(UserError):
    """The endpoint refuses, cannot be reached, or answers something else."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat model.

    Attributes:
        base_url: of the endpoint, as "https://api.openai.com/v1".
        model: the name it knows the model by.
        key: sent as a bearer token, and written nowhere; empty: none is sent. Spaces
            and ends of lines around it are not part of it.
        options: fields of the request's body, as temperature; None leaves one out.
        attempts: requests that are made for an answer, at most.
        first_wait_s: seconds before the second attempt, twice as many before each
            further one up to 60; where the server names a time, that.
        timeout_s: seconds to wait for a server that says nothing.
        answer_s: seconds that a whole answer may take.
    """

    base_url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attempts: int = 8
    first_wait_s: float = 1.0
    timeout_s: float = 120.0
    answer_s: float = 600.0

    def __call__(self, question: str, seed: int) -> str:
        """The answer to one question, empty where the model gives none.

        `seed` is sent along; servers differ in whether they heed it.

        Raises:
            ChatError: the request is refused, or fails `attempts` times.
            Interrupted: the run is to stop.
        """
        if not self.key.strip().isprintable() or not self.key.isascii():
            raise self._error(
                "the key has characters that no key has",
                "check config.prompts.chat_key_variable",
            )
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "seed": seed,
        } | dict(self.options)
        body = {name: value for name, value in body.items() if value is not None}
        for attempt in range(1, self.attempts + 1):
            interruption.check()
            wait = min(self.first_wait_s * 2 ** (attempt - 1), _LONGEST_WAIT_S)
            try:
                return _answer(self._post(body))
            except _TooLong as error:
                raise self._error(str(error), "") from None
            except _Refused as refusal:
                reason = f"status {refusal.code}, {refusal.text}"
                if refusal.code not in _PASSING and refusal.code < 500:
                    remedy = _REMEDIES.get(refusal.code, "")
                    raise self._error(reason, remedy) from None
                wait = _retry_after(refusal.wait, wait)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError):
                reason = "what it sent is no chat completion"
            if attempt < self.attempts:
                interruption.sleep(wait)
        raise self._error(
            f"{reason}, {self.attempts} times", "try again: what was answered is kept"
        )

    def _post(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := self.key.strip():
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with _hanging_up(self.answer_s) as handlers:
            opener = urllib.request.build_opener(_NoRedirects, *handlers)
            try:
                with opener.open(request, timeout=self.timeout_s) as response:
                    answer = response.read(_MOST_BYTES + 1)
            except urllib.error.HTTPError as error:
                wait = error.headers["Retry-After"]
                raise _Refused(error.code, _message(error), wait) from None
        if len(answer) > _MOST_BYTES:
            raise _TooLong(f"its answer has more than {_MOST_BYTES:,} bytes")
        return answer

    def _error(self, reason: str, remedy: str) -> ChatError:
        remedy = f": {remedy}" if remedy else ""
        # A server may repeat what it was sent.
        if key := self.key.strip():
            reason = reason.replace(key, "[key]")
        return ChatError(f"{self.base_url}, model {self.model}: {reason}{remedy}")


class _TooLong(Exception):
    """More than an answer can be."""


class _Refused(Exception):
    """A status that is no success, and what came with it."""

    def __init__(self, code: int, text: str, wait: str | None):
        super().__init__(code, text, wait)
        self.code, self.text, self.wait = code, text, wait


@contextlib.contextmanager
def _hanging_up(seconds: float) -> Iterator[tuple[urllib.request.BaseHandler, ...]]:
    """Handlers of http and https whose connections are cut off after so long.

    A timeout of urllib is for one read, and a server may send a byte at a time.

    Raises:
        TimeoutError: one was.
    """
    sockets: list[socket.socket] = []
    late = threading.Event()

    def hang_up():
        late.set()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    class HttpConnection(http.client.HTTPConnection):
        def connect(self):
            super().connect()
            sockets.append(self.sock)

    class HttpsConnection(http.client.HTTPSConnection):
        def connect(self):
            super().connect()
            sockets.append(self.sock)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(HttpConnection, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(HttpsConnection, request)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield Http(), Https()
    except Exception:  # a socket that is shut down while it is read raises almost any
        if late.is_set():
            raise TimeoutError(f"no whole answer within {seconds:g} s") from None
        raise
    finally:
        timer.cancel()
    if late.is_set():  # an answer of unknown length looks whole where it is cut off
        raise TimeoutError(f"no whole answer within {seconds:g} s")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the host that was named, and for no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _answer(data: bytes) -> str:
    content = json.loads(data)["choices"][0]["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError(type(content))
    # Models like to put what they were asked for into quotes.
    return (content or "").strip().strip("\"'\u201c\u201d").strip()


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says, on one line and not too long."""
    try:
        text = error.read(10_000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        found = json.loads(text)["error"]
        text = found if isinstance(found, str) else found["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:300] or error.reason


def _retry_after(asked_for: str | None, wait: float) -> float:
    try:
        asked = float(asked_for)
    except (TypeError, ValueError):
        return wait
    return wait if math.isnan(asked) else min(max(asked, 0.0), _LONGEST_WAIT_S)
