"""The chat client against a real server on this machine."""

import json
import socket
import threading
import time

import pytest

from gptfl_jax import interruption
from gptfl_jax.generators.text.chat import Chat, ChatError

from ....chat_server import ChatServer, Reply, completion


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
    monkeypatch.setattr(interruption, "sleep", waits.append)
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
        Reply(503, busy, {"Retry-After": "nan"}),
        Reply(503, busy, {"Retry-After": "-3"}),
        completion("a cat"),
    )
    assert Chat(server.url, "small", first_wait_s=0.5)("?", 0) == "a cat"
    assert waits == [7, 60, 2, 4, 0]


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


def test_a_key_is_not_shown_where_the_server_repeats_it(server, waits):
    echo = '{"error": {"message": "no such header: Authorization: Bearer s3cret"}}'
    server.replies(Reply(401, echo), Reply(503, echo))
    for status in (401, 503):
        with pytest.raises(
            ChatError, match=rf"status {status}, .*Bearer \[key\]"
        ) as info:
            Chat(server.url, "small", key="s3cret\n", attempts=2)("?", 0)
        assert "s3cret" not in str(info.value)


def test_what_surrounds_a_key_is_left_out(server):
    Chat(server.url, "small", key=" secret\r\n")("?", 0)
    assert server.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["se\rcret", "s\x1b[31mecret", "sécret"])
def test_what_is_no_key_is_not_sent(server, waits, key):
    with pytest.raises(ChatError, match="check config.prompts.chat_key_variable"):
        Chat(server.url, "small", key=key)("?", 0)
    assert not server.requests and not waits


@pytest.fixture
def endless():
    """A server whose answer begins well, and never ends; and what to send on and on."""
    rest: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve():
        while not done.is_set():
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(rest[0])
                    while not done.is_set():
                        connection.sendall(rest[1])
                        done.wait(0 if len(rest[1]) > 1 else 0.01)
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", rest
    done.set()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def test_an_answer_of_any_length_is_not_read(endless, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    url, rest = endless
    rest += [b"HTTP/1.0 200 OK\r\n\r\n", b" " * 100_000]
    with pytest.raises(ChatError, match="its answer has more than 1,000,000 bytes"):
        Chat(url, "small")("?", 0)
    assert not waits


@pytest.mark.parametrize("where", ["headers", "answer", "refusal"])
def test_a_server_that_sends_a_byte_at_a_time(endless, waits, monkeypatch, where):
    monkeypatch.setenv("NO_PROXY", "*")
    url, rest = endless
    status = b"503 No" if where == "refusal" else b"200 OK"
    end = b"" if where == "headers" else b"\r\n"
    rest += [b"HTTP/1.0 " + status + b"\r\n" + end, b" "]
    chat = Chat(url, "small", attempts=2, answer_s=0.3)
    started = time.monotonic()
    with pytest.raises(ChatError, match="no whole answer within 0.3 s, 2 times"):
        chat("?", 0)
    assert time.monotonic() - started < 5 and waits == [1]
