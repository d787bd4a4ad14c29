"""Handlers that are begun without a task, and what is remembered from one request of a connection to the next."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpud.http.client import Pool, UpstreamFailed
from gpud.http.limits import HeadLimits
from gpud.http.memory import LARGEST_BYTES, HeadMemory
from gpud.http.message import Reply, Request
from gpud.http.relay import relay
from gpud.http.wire import Refused, RequestHead, read_request_head
from gpud.http.work import in_task

from .raw import connected, engine, request_of, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HEAD = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: \t10 \r\nAccept: */*"
BARE = b"GET / HTTP/1.1\r\nHost: x\r\nX-Number: 1"


def test_a_handler_has_a_task_once_it_asks_for_one(run: Run) -> None:
    """Before, it runs within the callback that brought its request."""
    seen = []

    async def handler(_: Request, reply: Reply) -> None:
        seen.append(asyncio.current_task() is None)
        await in_task()
        seen.append(asyncio.current_task() is None)
        async with asyncio.timeout(50):
            await asyncio.sleep(0)
        await reply.send(200)

    async def scene() -> None:
        async with serving(handler, at_once=True) as (_, port), connected(port) as raw:
            assert (await raw.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200

    run(scene())
    assert seen == [True, False]


def test_what_is_no_turn_is_waited_for_in_a_task(run: Run) -> None:
    """A future, a sleep, a body that is to come: the handler goes on where it was."""

    begun = []

    async def handler(request: Request, reply: Reply) -> None:
        begun.append(asyncio.current_task() is None)
        body = await request.body(100)
        assert asyncio.current_task() is not None
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, b"!")
        await reply.send(200, body=body + await future)

    async def scene() -> None:
        async with serving(handler, at_once=True) as (_, port), connected(port) as raw:
            await raw.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha")
            await until(lambda: bool(begun))
            assert (await raw.ask(b"lf")).body == b"half!"

    run(scene())
    assert begun == [True]


def test_many_requests_that_come_together_are_answered_one_by_one(run: Run) -> None:
    """None is served within the one before: there may be more of them than calls fit into each other."""

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(200, body=request.target.encode())

    async def scene() -> None:
        async with serving(handler, at_once=True) as (_, port), connected(port) as raw:
            await raw.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3000)))
            for number in range(3000):
                assert (await raw.answer()).body == b"/%d" % number

    run(scene())


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request_of(reader)
    await reader.read()


@pytest.mark.parametrize("ends", ["the client leaves", "the server is closed"])
def test_a_handler_that_waits_for_an_engine_is_canceled(ends: str, run: Run) -> None:
    """It waits without a task until then; what it has to clean up, it cleans up in one."""
    cleaned = []

    async def scene() -> None:
        async with engine(silent) as endpoint:
            pool = Pool()

            async def handler(request: Request, reply: Reply) -> None:
                try:
                    async with pool.request(endpoint, "GET", "/") as response:
                        await relay(response, reply)
                except asyncio.CancelledError:
                    async with asyncio.timeout(50):
                        await asyncio.sleep(0)
                    cleaned.append(request.target)
                    raise

            async with serving(handler, at_once=True) as (server, port), connected(port) as raw:
                await raw.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: pool.connections == 1)
                if ends == "the client leaves":
                    raw.leave()
                    await until(lambda: bool(cleaned))
                else:
                    await server.close()
            await until(lambda: pool.connections == 0)
            await pool.close()

    run(scene())
    assert cleaned == ["/1"]


def test_an_engine_that_breaks_off_is_told_of_in_a_task(run: Run) -> None:
    """What comes after a failure is more than to answer; the second engine connection is a kept one."""
    told = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await request_of(reader)

    async def scene() -> None:
        async with engine(once) as endpoint:
            pool = Pool()

            async def handler(request: Request, reply: Reply) -> None:
                try:
                    async with pool.request(endpoint, "POST", request.target, body=b"x") as response:
                        told.append(asyncio.current_task() is None)
                        await reply.begin(response.status, length=response.length)
                        await relay(response, reply)
                except UpstreamFailed:
                    told.append(asyncio.current_task() is None)
                    await reply.send(502)

            async with serving(handler, at_once=True) as (_, port), connected(port) as raw:
                ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                assert (await raw.ask(ask)).body == b"ok"
                assert (await raw.ask(ask)).status == 502
            await pool.close()

    run(scene())
    assert told == [False, False], "the first had to connect, the second was told of a failure"


def test_what_was_kept_is_there_with_the_same_head_alone(run: Run) -> None:
    """The next request of the connection with another length has it; another header, or connection, has not."""

    async def handler(request: Request, reply: Reply) -> None:
        body = await request.body(100)
        before = request.kept.get("me", b"nothing")
        request.kept["me"] = body
        await reply.send(200, body=before + b" " + request.headers.get("content-length").encode())

    def post(body: bytes, more: bytes = b"") -> bytes:
        return b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body)

    async def scene() -> None:
        async with serving(handler, at_once=True) as (_, port):
            async with connected(port) as raw:
                assert (await raw.ask(post(b"one"))).body == b"nothing 3"
                assert (await raw.ask(post(b"three"))).body == b"one 5"
                assert (await raw.ask(post(b"two", b"X-A: 1\r\n"))).body == b"nothing 3"
                assert (await raw.ask(post(b"two", b"X-A: 2\r\n"))).body == b"nothing 3"
            async with connected(port) as raw:
                assert (await raw.ask(post(b"two", b"X-A: 2\r\n"))).body == b"nothing 3"

    run(scene())


def read(text: bytes) -> RequestHead | None:
    try:
        return read_request_head(text, HeadLimits())
    except Refused:
        return None


@given(st.sampled_from([HEAD, BARE]), st.integers(0, 90), st.integers(0, 4), st.binary(max_size=3))
@example(BARE, len(BARE), 0, b"2")
@example(HEAD, HEAD.index(b"10"), 2, b"1_0")
@example(HEAD, HEAD.index(b"10"), 2, b"")
@example(HEAD, HEAD.index(b"10"), 2, b"007")
@example(HEAD, HEAD.index(b"10"), 2, b"1234567890123456")
@example(HEAD, HEAD.index(b"10"), 2, b"5\r\nContent-Length: 5")
@example(HEAD, 0, len(HEAD), HEAD[: HEAD.index(b"10")])
@example(HEAD, 0, len(HEAD), HEAD[HEAD.index(b"10") + 2 :])
def test_what_is_remembered_is_what_would_be_read(first: bytes, at: int, left_out: int, put_in: bytes) -> None:
    """Whatever is changed in a head: it is read as if nothing had been remembered."""
    memory: HeadMemory[RequestHead] = HeadMemory()
    head = read(first)
    assert head is not None
    memory.keep(first, head)
    other = first[:at] + put_in + first[at + left_out :]
    found = memory.find(other)
    if found is None:
        return
    expected = read(other)
    assert expected is not None, "it would have been refused"
    assert (found.fields.raw, found.fields.index) == (expected.fields.raw, expected.fields.index)
    assert (found.length, found.target, found.keep_alive) == (expected.length, expected.target, expected.keep_alive)


def test_another_length_is_all_that_is_remembered() -> None:
    """The same head is found, and with another length; a large one is not remembered at all."""
    memory: HeadMemory[RequestHead] = HeadMemory()
    head = read(HEAD)
    assert head is not None
    memory.keep(HEAD, head)
    assert memory.find(HEAD) is head
    longer = memory.find(HEAD.replace(b"10", b"12345"))
    assert longer is not None
    assert longer.length == 12345
    assert longer.kept is head.kept
    large = HEAD + b"\r\nX: " + b"y" * LARGEST_BYTES
    found = read(large)
    assert found is not None
    memory.keep(large, found)
    assert memory.find(large) is None
    assert memory.find(HEAD) is None
