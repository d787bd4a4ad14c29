"""One request of an Ollama client on its way through an engine: translated for engines that speak OpenAI's language,
passed on to those that are Ollama themselves.

How often it is tried, and how it is told that an engine ended, is as for every other client's.
"""

import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gpud.core.errors import BackendFailed, GpudError
from gpud.core.facts import Endpoint, Model
from gpud.core.record import Record
from gpud.http.client import Response
from gpud.http.crossing import passed_on
from gpud.http.ollama_answers import Part, Reading, finished, words_of
from gpud.http.redaction import redacted
from gpud.http.relay import relay
from gpud.http.relaying import ERROR_BYTES, LINES_TOLD, Passage
from gpud.http.shapes import Api, HttpError, error_value
from gpud.http.upstream import UpstreamFailed
from gpud.http.waiting import status_of

OLLAMA = "ollama"
"""The engine whose clients these are."""

NDJSON = ("Content-Type", "application/x-ndjson")
JSON = ("Content-Type", "application/json")

SENT_ON = frozenset((b"accept", b"content-type", b"user-agent", b"traceparent", b"tracestate", b"x-request-id"))
PASSED_BACK = frozenset((b"content-type", b"retry-after"))

TAIL_BYTES = 4 << 10
"""Ollama's figures stand at the end of its answer."""

ANSWER_BYTES = 256 << 20
"""The largest answer that is read as a whole: embeddings of very many texts."""

_COUNT = re.compile(rb'"(prompt_eval_count|eval_count)"\s*:\s*(\d{1,12})\b')

_OF_THE_LOAD = frozenset(("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"))
"""With another value of one of these than it was loaded with, Ollama loads a model anew, asking nobody for memory."""


class Question(Record):
    """The same request in both languages. ``translated`` makes the path and the body for an engine of OpenAI's kind;
    ``body`` is what the client sent, ``path`` where. ``named`` is the model as the client calls it, ``line`` tells a
    part of the answer. ``attached``: the Ollama is one that gpud did not start.
    """

    named: str
    path: str
    body: bytes
    translated: Callable[[], tuple[str, dict[str, Any]]]
    line: Callable[[str, Part], dict[str, Any]] | None
    streams: bool
    answered: Callable[[dict[str, Any], Reading], dict[str, Any]] | None = None
    attached: bool = False


class OllamaPassage(Passage):
    """To be used once, by :meth:`run`."""

    question: Question

    def ask(self, question: Question) -> "OllamaPassage":
        self.question = question
        self._reading = Reading()
        return self

    async def _ask(self, endpoint: Endpoint) -> None:
        self._reading.engine_found()
        status = status_of(self._engine, self._call.model)
        if status is not None and status.model.engine == OLLAMA:
            await self._pass_on(endpoint, status.model)
        else:
            await self._translate(endpoint)

    # Engines of OpenAI's kind ----------------------------------------------------------------------------------------

    async def _translate(self, endpoint: Endpoint) -> None:
        question, exchange = self.question, self._exchange
        target, value = question.translated()
        body = msgspec.json.encode({"model": endpoint.model or self._call.model, **value})
        headers = [JSON, ("Accept-Encoding", "identity")]
        async with self._pool.request(
            endpoint, "POST", target, headers=headers, body=body, limits=self._limits, repeatable=True
        ) as response:
            if exchange.first_byte_s is None:
                exchange.first_byte_s = time.monotonic() - exchange.began_s
            if response.status != 200:
                raise await refused(response, self._call.model)
            if question.line is None:
                await self._answer_whole(response)
            else:
                await self._answer_parts(response, question.line)

    async def _answer_parts(self, response: Response, line: Callable[[str, Part], dict[str, Any]]) -> None:
        """A stream is told on as it comes; else the whole is told at its end, and what goes wrong keeps its status."""
        question, reading, reply = self.question, self._reading, self._reply
        whole = Part()
        if question.streams:
            await reply.begin(200, [NDJSON, *self._exchange.headers])
        async for piece in response.chunks():
            self._end.see(piece)
            for part in reading.feed(piece):
                if question.streams:
                    await reply.write(_as_line(line(question.named, part)))
                else:
                    whole.add(part)
        rest = reading.rest()
        if not question.streams:
            whole.add(rest)
            await self._exchange.answer(finished(line(question.named, whole), reading))
            return
        if rest:
            await reply.write(_as_line(line(question.named, rest)))
        await reply.write(_as_line(finished(line(question.named, Part()), reading)))
        await reply.end()

    async def _answer_whole(self, response: Response) -> None:
        body = await response.read(ANSWER_BYTES)
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = None
        if not isinstance(value, dict) or self.question.answered is None:
            raise HttpError(
                502, "bad_gateway", f'the engine of "{self._call.model}" answered something that is no JSON'
            )
        await self._exchange.answer(self.question.answered(value, self._reading))

    # Ollama itself ---------------------------------------------------------------------------------------------------

    async def _pass_on(self, endpoint: Endpoint, model: Model) -> None:
        question, exchange, reply = self.question, self._exchange, self._reply
        body = for_ollama(question.body, model, attached=question.attached)
        headers = passed_on(exchange.request.headers, SENT_ON)
        tail = Tail()
        exchange.tail = lambda: tail.end
        async with self._pool.request(
            endpoint, "POST", question.path, headers=headers, body=body, limits=self._limits, repeatable=True
        ) as response:
            if exchange.first_byte_s is None:
                exchange.first_byte_s = time.monotonic() - exchange.began_s
            is_stream = b"ndjson" in (response.headers.lowered(b"content-type") or b"")
            await reply.begin(
                response.status, [*passed_on(response.headers, PASSED_BACK), *exchange.headers], response.length
            )
            try:
                await relay(response, reply, tail.see)
            except UpstreamFailed:
                if not is_stream or response.length is not None:
                    reply.abort()
                    return
                raise
            finally:
                counts = {name: int(number) for name, number in _COUNT.findall(tail.end)}
                exchange.prompt_tokens = counts.get(b"prompt_eval_count")
                exchange.generated_tokens = counts.get(b"eval_count")

    # Errors ----------------------------------------------------------------------------------------------------------

    async def _break_off(self, error: GpudError) -> None:
        """The stream was begun: its last line tells what went wrong."""
        value = error_value(Api.OLLAMA, error)
        if isinstance(error, BackendFailed) and error.tail:
            value["engine_output"] = [redacted(line) for line in error.tail[-LINES_TOLD:]]
        # An unfinished line of Ollama's must not swallow this one.
        await self._finish(b"\n" + _as_line(value))


class Tail:
    """The end of what passes."""

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end = b""

    def see(self, piece: bytes) -> None:
        self.end = (self.end + piece)[-TAIL_BYTES:] if len(piece) < TAIL_BYTES else piece[-TAIL_BYTES:]


def for_ollama(body: bytes, model: Model, *, attached: bool) -> bytes:
    """What a client sent, by Ollama's name for the model, and without what is gpud's business: how long it is kept, and
    how it is loaded. Everything else keeps its bytes.
    """
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    # Ollama reads the names of fields in any case, and takes the last of them.
    kept = {
        name: value
        for name, value in fields.items()
        if name.casefold() not in ("model", "name", "keep_alive", "options")
    }
    options: dict[str, Any] = {}
    for name, value in fields.items():
        if name.casefold() == "options" and bytes(value).strip() != b"null":
            options |= msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    options = {name: value for name, value in options.items() if name not in _OF_THE_LOAD}
    if model.settings.context is not None:
        options["num_ctx"] = model.settings.context
    if attached and model.settings.threads is not None:
        options["num_thread"] = model.settings.threads
    named = model.settings.ollama_name or model.name
    return msgspec.json.encode({"model": named, **kept, **({"options": options} if options else {})})


async def refused(response: Response, model: str) -> HttpError:
    """What an engine's refusal is told as: its own words and its own status, where it has any."""
    body = await response.read(ERROR_BYTES)
    try:
        words = words_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = ""
    status = response.status if 400 <= response.status < 600 else 502
    words = words or f'the engine of "{model}" answered {response.status} without saying why'
    return HttpError(status, "backend_error", words)


def _as_line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"
