"""Answers of a chat model behind an OpenAI-compatible endpoint.

The protocol is that of `POST <base url>/chat/completions`, which vLLM, llama.cpp,
Ollama and many services offer as well as OpenAI.
"""

import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from gptfl_jax.configuration import UserError

# What a server says when the same request may succeed later.
_PASSING = {408, 409, 425, 429}
_LONGEST_WAIT_S = 60.0

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
      key: sent as a bearer token, and written nowhere; empty: none is sent.
      options: fields of the request's body, as temperature; None leaves one out.
      attempts: requests that are made for an answer, at most.
      first_wait_s: seconds before the second attempt, twice as many before each
        further one up to 60; where the server names a time, that.
      timeout_s: seconds to wait for a server that says nothing.
    """

    base_url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attempts: int = 8
    first_wait_s: float = 1.0
    timeout_s: float = 120.0

    def __call__(self, question: str, seed: int) -> str:
        """The answer to one question, empty where the model gives none.

        `seed` is sent along; servers differ in whether they heed it.

        Raises:
          ChatError: the request is refused, or fails `attempts` times.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "seed": seed,
        } | dict(self.options)
        body = {name: value for name, value in body.items() if value is not None}
        for attempt in range(1, self.attempts + 1):
            wait = min(self.first_wait_s * 2 ** (attempt - 1), _LONGEST_WAIT_S)
            try:
                return _answer(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}, {_message(error)}"
                if error.code not in _PASSING and error.code < 500:
                    remedy = _REMEDIES.get(error.code, "")
                    raise self._error(reason, remedy) from None
                wait = _retry_after(error, wait)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError):
                reason = "what it sent is no chat completion"
            if attempt < self.attempts:
                time.sleep(wait)
        raise self._error(
            f"{reason}, {self.attempts} times", "try again: what was answered is kept"
        )

    def _post(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=self.timeout_s) as response:
            return response.read()

    def _error(self, reason: str, remedy: str) -> ChatError:
        remedy = f": {remedy}" if remedy else ""
        return ChatError(f"{self.base_url}, model {self.model}: {reason}{remedy}")


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


def _retry_after(error: urllib.error.HTTPError, wait: float) -> float:
    try:
        asked = float(error.headers["Retry-After"])
    except (TypeError, ValueError):
        return wait
    return min(max(asked, 0), _LONGEST_WAIT_S)
