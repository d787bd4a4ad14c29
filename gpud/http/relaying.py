"""One request's passage through an engine: it is sent as it came, and the answer is passed on as it comes.

What an engine cannot answer any more is said in the words of the API that was asked. Which fields of a header cross
is in ``crossing``.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from gpud.core.errors import BackendFailed, GpudError
from gpud.core.events import LoadOptions, Outcome
from gpud.core.facts import Endpoint, ModelStatus, State
from gpud.core.record import Record
from gpud.engine import Engine
from gpud.http.answer_end import AnswerEnd
from gpud.http.client import Pool, Question, Response
from gpud.http.connection import tunnel
from gpud.http.crossing import PASSED_BACK, PASSED_BACK_UPGRADE, SENT_ON, SENT_ON_UPGRADE, passed_on
from gpud.http.exchange import Exchange
from gpud.http.fields import HeadStart, start_head, status_line
from gpud.http.limits import ClientLimits
from gpud.http.naming import with_model
from gpud.http.redaction import redacted
from gpud.http.relay import relay
from gpud.http.shapes import Api, HttpError, error_value
from gpud.http.upstream import Stage, Trouble, UpstreamFailed
from gpud.http.waiting import Waiting, status_of
from gpud.http.work import in_task

log = logging.getLogger(__name__)

NOTICED_S = 1.0
"""How long it may take until it is known that an engine has ended whose connection broke: the kernel tells at once."""

LINES_TOLD = 20
"""How many of the last lines of an engine's output go into an error event."""

ERROR_BYTES = 256 << 10
"""How much is read of an answer that can only be told as an event any more."""

_IDENTITY = (b"Accept-Encoding", b"identity")


class Call(msgspec.Struct, frozen=True):
    """What is to be asked of which model. ``target`` is the engine's path with its query.

    ``named`` is the model as the request named it, and empty where nothing of the body is to be changed. ``streams``:
    the client asked for events, so it can be kept company. ``repeatable``: asking twice does no harm.
    """

    model: str
    method: str
    target: str
    body: bytes | None
    named: str | None = None
    streams: bool = False
    tells: bool = False
    repeatable: bool = True
    options: LoadOptions | None = None


class RelaySettings(Record):
    """``first_s`` is how long a client that waits is told nothing, ``heartbeat_s`` how often it is told something then,
    ``limits`` are for the engine's side.
    """

    first_s: float
    heartbeat_s: float
    limits: ClientLimits


class Passage:
    """One request on its way. To be used once."""

    def __init__(self, engine: Engine, pool: Pool, exchange: Exchange, call: Call, settings: RelaySettings) -> None:
        self._engine = engine
        self._pool = pool
        self._exchange = exchange
        self._reply = exchange.reply
        self._call = call
        self._limits = settings.limits
        self._end = AnswerEnd()
        exchange.tail = self._end.tail
        self._waited_s: float | None = None
        self._waiting: Waiting | None = None
        if call.streams:
            self._waiting = Waiting(
                exchange,
                engine,
                call.model,
                first_s=settings.first_s,
                every_s=settings.heartbeat_s,
                tells=call.tells,
            )

    async def run(self) -> None:
        """Load the model if need be, ask, and answer. Raises GpudError where nothing was answered yet."""
        try:
            try:
                await self._once()
            except UpstreamFailed as problem:
                await self._again(problem)
        except GpudError as error:
            await self._stop_waiting()
            if not self._reply.begun:
                raise
            if not self._reply.ended:
                await self._break_off(error)
        finally:
            if self._waiting is not None:
                self._waiting.cut()
            self._end.settle(self._exchange)

    async def look(self, endpoint: Endpoint) -> None:
        """Ask an engine that runs, without that counting as a use of its model."""
        try:
            await self._ask(endpoint)
        except UpstreamFailed as problem:
            if self._reply.begun:
                self._reply.abort()
                return
            raise await self._as_error(problem) from None

    async def _again(self, problem: UpstreamFailed) -> None:
        """Once more where that does no harm."""
        await in_task()
        if not self._may_repeat(problem):
            raise await self._as_error(problem) from None
        status = await self._noticed()
        log.info(
            'The engine of "%s" gave no answer (%s%s): the request is sent once more',
            self._call.model,
            problem,
            f"; {status.error}" if status is not None and status.error else "",
        )
        try:
            await self._once()
        except UpstreamFailed as again:
            raise await self._as_error(again) from None

    async def _once(self) -> None:
        call = self._call
        use = self._engine.use(call.model, self._exchange.caller, call.options)
        async with use as endpoint:
            self._waited_s = use.waited_s
            if use.waited_s is not None:
                self._exchange.tell_load(use.waited_s)
            await self._ask(endpoint)

    def _may_repeat(self, problem: UpstreamFailed) -> bool:
        """True when the engine went away before it said anything."""
        if problem.stage is Stage.BODY or problem.trouble not in (Trouble.REFUSED, Trouble.CLOSED):
            return False
        return self._call.repeatable or not problem.sent

    async def _ask(self, endpoint: Endpoint) -> None:
        call, exchange, reply = self._call, self._exchange, self._reply
        body = call.body
        if endpoint.model and body and call.named is not None and call.named != endpoint.model:
            body = with_model(body, exchange.request.headers.get("content-type"), endpoint.model)
        async with self._pool.ask(
            self._question(endpoint), body=body, limits=self._limits, repeatable=call.repeatable
        ) as response:
            if self._waiting is not None:
                await self._stop_waiting()
            if exchange.first_byte_s is None:
                exchange.first_byte_s = time.monotonic() - exchange.began_s
            if response.status == 101:
                await self._exchange_bytes(response)
                return
            told = _told(response, exchange.headers)
            if not reply.begun:
                await reply.begin(response.status, told.head, response.length)
            elif response.status != 200 or not told.is_stream:
                await self._answer_late(response)
                return
            elif self._waited_s is not None:
                # Too late for the header.
                await reply.write(f": gpud: it was loaded after {self._waited_s:.3f} s\n\n".encode())
            try:
                await relay(response, reply, self._end.see)
            except UpstreamFailed as problem:
                if not told.is_stream or response.status != 200:
                    log.warning('The answer of "%s" was cut off: %s', call.model, problem)
                    reply.abort()
                    return
                raise

    def _question(self, endpoint: Endpoint) -> Question:
        """What the engine is asked, but for the body: as the last time where that was the same."""
        call, request = self._call, self._exchange.request
        kept: Question | None = request.kept.get(_QUESTION)
        if kept is not None and kept.is_for(endpoint, call.target):
            return kept
        headers = passed_on(request.headers, SENT_ON_UPGRADE if request.upgrade else SENT_ON)
        headers.append(_IDENTITY)
        question = request.kept[_QUESTION] = self._pool.question(endpoint, call.method, call.target, headers)
        return question

    async def _exchange_bytes(self, response: Response) -> None:
        headers = passed_on(response.headers, PASSED_BACK_UPGRADE)
        await in_task()
        front = await self._reply.upgrade([*headers, *self._exchange.headers])
        await tunnel(front, response.upgrade())

    async def _answer_late(self, response: Response) -> None:
        """What is no stream, to a client that was begun one: the whole answer as one event."""
        body = await response.read(ERROR_BYTES)
        self._end.see(body)
        line = b"data: " + b" ".join(body.split(b"\n")) + b"\n\n"
        api, path = self._exchange.route.api, self._exchange.route.path
        if response.status == 200:
            await self._finish(line + _last_words(api, path))
            return
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = None
        if isinstance(value, dict) and "error" in value:
            event = b"event: error\n" if api is Api.ANTHROPIC else b""
            await self._finish(event + line + _last_words(api, path))
            return
        raise HttpError(
            502, "bad_gateway", f'the engine of "{self._call.model}" answered {response.status} without saying why'
        )

    async def _break_off(self, error: GpudError) -> None:
        """The stream was begun: tell it what went wrong, and end it."""
        log.warning('A stream of "%s" was broken off: %s', self._call.model, error.text)
        tail = error.tail[-LINES_TOLD:] if isinstance(error, BackendFailed) else ()
        event = error_event(self._exchange.route.api, self._exchange.route.path, error, tail)
        # An event that was cut off must not swallow this one.
        await self._finish((b"" if self._end.is_between_events else b"\n\n") + event)

    async def _finish(self, last: bytes) -> None:
        await self._reply.write(last)
        await self._reply.end()

    async def _stop_waiting(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            await waiting.stop()

    async def _as_error(self, problem: UpstreamFailed) -> GpudError:
        """What a client is told of an engine that gave no answer, or not all of it."""
        model = self._call.model
        if problem.trouble in (Trouble.CLOSED, Trouble.REFUSED):
            status = await self._noticed()
            if status is not None and status.state is not State.READY and status.error:
                return BackendFailed(status.error, hint=status.error_hint, tail=status.error_tail)
        return HttpError(
            502, "bad_gateway", f'the engine of "{model}" gave no proper answer: {problem}', hint="see gpudctl logs"
        )

    async def _noticed(self) -> ModelStatus | None:
        """How the model stands once it is known that its engine has ended; as it is where nothing comes of that."""
        model, engine = self._call.model, self._engine
        before = status_of(engine, model)
        if before is None or before.state is not State.READY:
            return before
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(_: tuple[Outcome, ...]) -> None:
            now = status_of(engine, model)
            if not seen.done() and (now is None or now.state is not State.READY):
                seen.set_result(None)

        unsubscribe = engine.subscribe(look)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seen, NOTICED_S)
        finally:
            unsubscribe()
        return status_of(engine, model)


_QUESTION, _TOLD = "question", "told"
"""What is kept with a head, 10 µs a request each: the question that it became, the answer's head that it became."""


class _Told(NamedTuple):
    """An engine's head as a client is told it. ``more`` was added."""

    more: tuple[tuple[str, str], ...]
    head: HeadStart
    is_stream: bool


def _told(response: Response, more: tuple[tuple[str, str], ...]) -> _Told:
    kept: _Told | None = response.kept.get(_TOLD)
    if kept is not None and kept.more == more:
        return kept
    fields = [*passed_on(response.headers, PASSED_BACK), *more]
    is_stream = (response.headers.lowered(b"content-type") or b"")[:17].lower() == b"text/event-stream"
    told = response.kept[_TOLD] = _Told(more, start_head(status_line(response.status), fields), is_stream)
    return told


def error_event(api: Api, path: str, error: GpudError, tail: Iterable[str] = ()) -> bytes:
    """How a stream of this API is told of an error, with its last words."""
    value = error_value(api, error)
    inner = value.get("error")
    lines = [redacted(line) for line in tail]
    if lines and isinstance(inner, dict):
        inner["engine_output"] = lines
    if api is Api.ANTHROPIC:
        return b"event: error\ndata: " + msgspec.json.encode(value) + b"\n\n"
    if path.endswith("/responses") and isinstance(inner, dict):
        told = {"type": "error", "code": inner.get("code"), "param": None, "sequence_number": 0} | {
            name: inner[name] for name in ("message", "engine_output") if name in inner
        }
        return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"
    return b"data: " + msgspec.json.encode(value) + b"\n\n" + _last_words(api, path)


def _last_words(api: Api, path: str) -> bytes:
    return b"data: [DONE]\n\n" if api is Api.OPENAI and not path.endswith("/responses") else b""
