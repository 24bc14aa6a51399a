"""The chat client against a real server on this machine."""

import json
import threading
import time

import pytest

from gptfl_jax.generators.chat import Chat, ChatError

from ...chat_server import ChatServer, Reply, completion


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def waits(monkeypatch):
    """How long the client has waited, without waiting."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_what_is_sent(server):
    options = {"temperature": 0.7, "seed": 5, "max_tokens": 60, "top_p": None}
    model = Chat(server.url + "/", "small", key="secret", options=options)
    assert model("a question?", 3) == "a cat"
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": "small",
        "messages": [{"role": "user", "content": "a question?"}],
        "seed": 5,  # the options' own
        "temperature": 0.7,
        "max_tokens": 60,
    }
    assert "secret" not in repr(model)


def test_without_a_key_none_is_sent(server):
    Chat(server.url, "small", options={"seed": None})("?", 3)
    ((_, headers, body),) = server.requests
    assert "Authorization" not in headers and "seed" not in body


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"A cat on a mat."', "A cat on a mat."),
        ("\u201ca cat\u201d\n", "a cat"),
        ("a cat's tail", "a cat's tail"),
        ("", ""),
        (None, ""),  # a refusal
    ],
)
def test_answers_are_unwrapped(server, text, expected):
    server.replies(completion(text))
    assert Chat(server.url, "small")("?", 0) == expected


def test_passing_failures_are_tried_again(server, waits):
    server.replies(
        Reply(429, '{"error": {"message": "slow down"}}'),
        Reply(500, "oops"),
        Reply(0),
        Reply(200, "no JSON"),
        Reply(200, '{"choices": []}'),
        completion("a cat"),
    )
    assert Chat(server.url, "small")("?", 0) == "a cat"
    assert len(server.requests) == 6 and waits == [1, 2, 4, 8, 16]
    assert len({json.dumps(request.body) for request in server.requests}) == 1


def test_waits_are_those_the_server_asks_for(server, waits):
    busy = '{"error": "busy"}'
    server.replies(
        Reply(503, busy, {"Retry-After": "7"}),
        Reply(503, busy, {"Retry-After": "3600"}),
        Reply(503, busy, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        completion("a cat"),
    )
    assert Chat(server.url, "small", first_wait_s=0.5)("?", 0) == "a cat"
    assert waits == [7, 60, 2]


def test_it_gives_up_in_the_end(server, waits):
    server.replies(Reply(503, '{"error": {"message": "over\\nloaded"}}'))
    message = r"model small: status 503, over loaded, 9 times: try again"
    with pytest.raises(ChatError, match=message):
        Chat(server.url, "small", attempts=9)("?", 0)
    assert len(server.requests) == 9 and waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    "status, text, message",
    [
        (401, '{"error": {"message": "bad key"}}', "status 401, bad key: set the env"),
        (404, '{"error": "no such model"}', "404, no such model: check config.prompts"),
        (400, '{"detail": 1}', r'status 400, {"detail": 1}$'),
        (422, "", "status 422, Unprocessable"),
        (302, "", "status 302, Found"),
    ],
)
def test_refusals_are_said_at_once(server, waits, status, text, message):
    # Where a redirect leads is not told the key.
    server.replies(Reply(status, text, {"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(ChatError, match=message) as info:
        Chat(server.url, "small", key="secret")("?", 0)
    assert len(server.requests) == 1 and not waits
    assert "secret" not in str(info.value)


def test_a_server_that_is_not_there(server, waits):
    url = "http://127.0.0.1:1/v1"
    with pytest.raises(ChatError, match=r"127.0.0.1:1/v1, .*refused.*, 2 times"):
        Chat(url, "small", attempts=2)("?", 0)
    assert waits == [1]


def test_a_server_that_says_nothing(server, waits):
    proceed = threading.Event()
    server.reply = lambda _: proceed.wait(10) and completion("late")
    with pytest.raises(ChatError, match="timed out, 2 times"):
        Chat(server.url, "small", attempts=2, timeout_s=0.2)("?", 0)
    proceed.set()
    assert waits == [1]
