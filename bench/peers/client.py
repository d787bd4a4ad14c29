"""The client: one connection and one request at a time, sixteen connections at once, and a stream read to its end."""

import contextlib
import http.client
import itertools
import json
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

CHAT = "/v1/chat/completions"
BOUND_S = 60.0
"""How long any answer may take. Loads of these models take a fraction of a second."""


class Broken(RuntimeError):
    """An answer that is none, where one had to come: nothing can be measured."""


_numbers = itertools.count(100_000)


def body(model: str, tokens: int, *, stream: bool = False) -> bytes:
    """A short chat that nobody has had before. The models speak without end: an answer is as long as it may be."""
    said = f"hello {next(_numbers)}"
    asked = {"model": model, "max_tokens": tokens, "stream": stream, "messages": [{"role": "user", "content": said}]}
    return json.dumps(asked).encode()


HEADERS = {"Content-Type": "application/json"}


class Asker:
    """One connection that stays."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)

    def seconds(self, model: str) -> float:
        """From sending a question to having the whole answer of one token."""
        question = body(model, 1)
        begun = time.perf_counter()
        self._connection.request("POST", CHAT, question, HEADERS)
        answer = self._connection.getresponse()
        said = answer.read()
        took = time.perf_counter() - begun
        if answer.status != 200:
            raise Broken(f"status {answer.status}: {said[:300]!r}")
        return took

    def close(self) -> None:
        self._connection.close()


def post(port: int, path: str, asked: object) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)) as connection:
        connection.request("POST", path, json.dumps(asked), HEADERS)
        answer = connection.getresponse()
        return answer.status, answer.read()


def until_answered(port: int, path: str, *, bound_s: float = BOUND_S, every_s: float = 0.01) -> None:
    """Until something at the port answers with 200."""
    deadline = time.monotonic() + bound_s
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(every_s)
    raise Broken(f"what was started to listen at a port does not answer {path} within {bound_s:g} s")


@dataclass
class Streamed:
    """What became of a stream. ``ended`` is answered, cut or refused."""

    ended: str
    status: int
    first_s: float
    said: str = ""


class Stream:
    """One streamed answer, on a connection of its own."""

    def __init__(self, port: int, model: str, tokens: int) -> None:
        self._begun = time.perf_counter()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)
        self._connection.request("POST", CHAT, body(model, tokens, stream=True), HEADERS)
        self._answer = self._connection.getresponse()
        self._first = self._answer.read(1)
        self.first_s = time.perf_counter() - self._begun

    def rest(self) -> Streamed:
        """Read it to its end, whatever that is."""
        parts = [self._first]
        try:
            parts.extend(self._pieces())
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self._connection.close()
        text = b"".join(parts)
        ended = "answered" if b"[DONE]" in text else "cut"
        if self._answer.status != 200:
            ended = "refused"
        return Streamed(ended, self._answer.status, self.first_s, text[-300:].decode(errors="replace"))

    def _pieces(self) -> Iterator[bytes]:
        while piece := self._answer.read1():
            yield piece


def first_byte_s(port: int, model: str) -> float:
    """From the request for a stream to the first byte of its answer, which has to be a good one."""
    stream = Stream(port, model, 1)
    done = stream.rest()
    if done.ended != "answered":
        raise Broken(f'a stream of "{model}" was {done.ended}, status {done.status}: {done.said}')
    return done.first_s


class _Asking:
    """One of many connections: asks again as soon as it has its answer."""

    def __init__(self, port: int, model: str, selector: selectors.BaseSelector) -> None:
        self._port, self._model, self._selector = port, model, selector
        self._have = b""
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), BOUND_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def ask(self) -> None:
        self._have = b""
        text = body(self._model, 1)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)

    def is_answered(self) -> bool:
        piece = self._socket.recv(65536)
        if not piece:
            raise Broken(f"a connection was closed in the middle of an answer, after {self._have[:300]!r}")
        self._have += piece
        head, found, rest = self._have.partition(b"\r\n\r\n")
        if not found:
            return False
        if b" 200 " not in head[:16]:
            raise Broken(f"an answer began with {head[:200]!r}")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            is_whole = rest.endswith(b"0\r\n\r\n")
        else:
            is_whole = len(rest) >= int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if is_whole and b"connection: close" in lower:
            # llama-server ends a connection after so many answers.
            self.close()
            self._connect()
        return is_whole


def rate(port: int, model: str, clients: int, seconds: float) -> float:
    """Answers of one token each second, with so many clients that ask again at once."""
    askers = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(clients):
                asker = _Asking(port, model, selector)
                askers.append(asker)
                asker.ask()
            answers, begun = 0, time.perf_counter()
            while (now := time.perf_counter()) < begun + seconds:
                ready = selector.select(BOUND_S)
                if not ready:
                    raise Broken(f"none of {clients} clients was answered within {BOUND_S:g} s")
                for key, _ in ready:
                    if key.data.is_answered():
                        answers += 1
                        key.data.ask()
            return answers / (now - begun)
        finally:
            for asker in askers:
                asker.close()
