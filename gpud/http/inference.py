"""POST /inference: one question, one answer, whichever engine has the model. What is streamed is streamed as
/v1/chat/completions does it.

It asks the engine and reads its answer; of prompts and answers it keeps nothing.
"""

import contextlib
import time
from typing import Any

import msgspec

from gpud.core.errors import BackendFailed, GpudError
from gpud.core.events import LoadOptions
from gpud.core.facts import Caller, Endpoint, State
from gpud.core.record import Record
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.exchange import Exchange
from gpud.http.own import Name, Parts, backend_name, decoded, engines_of, model_of, wished_priority
from gpud.http.relaying import Call, Passage, RelaySettings
from gpud.http.routing import Route
from gpud.http.shapes import UNREADABLE, Api, HttpError, why_unreadable
from gpud.http.upstream import Stage, Trouble, UpstreamFailed
from gpud.http.waiting import status_of

PATH = "/v1/chat/completions"

QUESTION_BYTES = 32 << 20
"""A prompt may be long, and a message may have images in it."""

ANSWER_BYTES = 64 << 20

QUIET_S = 1.0
"""How long a stream that waits for its model is told nothing: what fails within it keeps its status."""


class InferenceBody(msgspec.Struct, forbid_unknown_fields=True):
    """``prompt`` or ``messages``. Without a model the default one answers. ``priority`` is for the queue: low, normal,
    high, critical, or 1 to 10. ``options`` go to the engine as they are (``top_p``, ``stop``, ``response_format`` …).
    """

    model: Name = "default"
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    system: str | None = None
    backend: Name = ""
    priority: str | int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False
    options: dict[str, Any] = {}


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Inferred(msgspec.Struct):
    """``load_ms`` is the wait until the model was ready, its load included; ``duration_ms`` is all of it."""

    id: str
    model: str
    backend: str
    text: str
    finish_reason: str | None
    usage: Usage
    load_ms: int
    duration_ms: int


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    id: str = ""
    usage: Usage | None = None


class Completed(Record):
    """What an engine answered, and when it was there. ``engine`` is which it was; ``waited_s`` is how long its model
    took to be there, None where it was there already.
    """

    answer: _Answer
    ready_s: float
    engine: str
    waited_s: float | None = None


class Inference:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "POST",
                "/inference",
                self._inference,
                Api.MANAGEMENT,
                summary="Ask a model",
                body=InferenceBody,
                answer=Inferred,
                tag="inference",
            ),
        )

    async def _inference(self, exchange: Exchange) -> None:
        parts = self._parts
        body = decoded(await exchange.request.body(QUESTION_BYTES), InferenceBody)
        messages = messages_of(body)
        name = exchange.model = model_of(exchange, parts, body.model or "default")
        options = LoadOptions(
            priority=wished_priority(exchange, body.priority), engines=engines_of(parts, body.backend)
        )
        question = question_of(body, name, messages)
        if body.stream:
            call = Call(name, "POST", PATH, msgspec.json.encode(question), name, True, options=options)
            settings = RelaySettings(QUIET_S, parts.settings.heartbeat_s, parts.pool.limits)
            await Passage(parts.engine, parts.pool, exchange, call, settings).run()
            return
        completed = await complete(parts.engine, parts.pool, exchange.caller, name, question, options)
        if completed.waited_s is not None:
            exchange.tell_load(completed.waited_s)
        choice = completed.answer.choices[0] if completed.answer.choices else _Choice(_Message())
        usage = completed.answer.usage or Usage()
        exchange.prompt_tokens = usage.prompt_tokens or 0
        exchange.generated_tokens = usage.completion_tokens or 0
        await exchange.answer(
            Inferred(
                id=completed.answer.id,
                model=name,
                backend=backend_name(completed.engine),
                text=choice.message.content or "",
                finish_reason=choice.finish_reason,
                usage=usage,
                load_ms=round(1000 * (completed.ready_s - exchange.began_s)),
                duration_ms=round(1000 * (time.monotonic() - exchange.began_s)),
            )
        )


def messages_of(body: InferenceBody) -> list[dict[str, Any]]:
    """Raises HttpError(400) where there is no question, or two."""
    if (body.prompt is None) is (body.messages is None):
        problem = "has neither" if body.prompt is None else "has both"
        raise HttpError(400, "invalid_request", f'the body {problem} "prompt" and "messages"', hint="send one of them")
    messages = [{"role": "user", "content": body.prompt}] if body.messages is None else body.messages
    if not messages:
        raise HttpError(400, "invalid_request", '"messages" is empty', hint="send at least one message")
    return [{"role": "system", "content": body.system}, *messages] if body.system is not None else messages


def question_of(body: InferenceBody, name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the engine is asked; what the body says by itself goes before what is among its options."""
    said = {"max_tokens": body.max_tokens, "temperature": body.temperature}
    named = {key: value for key, value in said.items() if value is not None}
    return {**body.options, **named, "model": name, "messages": messages, "stream": body.stream}


async def complete(
    engine: Engine,
    pool: Pool,
    caller: Caller,
    model: str,
    question: dict[str, Any],
    options: LoadOptions | None = None,
) -> Completed:
    """Ask a model once, and once more where its engine went away before it said anything. Raises GpudError."""
    try:
        return await _once(engine, pool, caller, model, question, options)
    except UpstreamFailed as problem:
        if problem.stage is Stage.BODY or problem.trouble not in (Trouble.REFUSED, Trouble.CLOSED):
            raise _failed(engine, model, problem) from None
    try:
        return await _once(engine, pool, caller, model, question, options)
    except UpstreamFailed as problem:
        raise _failed(engine, model, problem) from None


async def _once(
    engine: Engine, pool: Pool, caller: Caller, model: str, question: dict[str, Any], options: LoadOptions | None
) -> Completed:
    use = engine.use(model, caller, options)
    async with use as endpoint:
        ready_s = time.monotonic()
        status = status_of(engine, model)
        if endpoint.model:
            question = {**question, "model": endpoint.model}
        body = msgspec.json.encode(question)
        answer = await _ask(pool, endpoint, model, body)
        return Completed(answer, ready_s, status.model.engine if status else "", use.waited_s)


async def _ask(pool: Pool, endpoint: Endpoint, model: str, body: bytes) -> _Answer:
    headers = [("Content-Type", "application/json"), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
    async with pool.request(endpoint, "POST", PATH, headers=headers, body=body, repeatable=True) as response:
        data = await response.read(ANSWER_BYTES)
        if response.status != 200:
            raise _refused(model, response.status, data)
    try:
        return msgspec.json.decode(data, type=_Answer)
    except UNREADABLE as problem:
        raise HttpError(
            502,
            "backend_error",
            f'the engine of "{model}" gave an answer that cannot be read: {why_unreadable(problem)}',
        ) from None


def _refused(model: str, status: int, data: bytes) -> HttpError:
    """What the engine itself says is wrong. Of its 4xx the client is the cause, of all else it is not."""
    message = ""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = msgspec.json.decode(data)
        error = value.get("error") if isinstance(value, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        message = said[:1000] if isinstance(said, str) else ""
    text = f'the engine of "{model}" answered {status}' + (f": {message}" if message else "")
    if 400 <= status < 500:
        return HttpError(status, "invalid_request", text)
    return HttpError(503 if status == 503 else 502, "backend_error", text)


def _failed(engine: Engine, model: str, problem: UpstreamFailed) -> GpudError:
    status = status_of(engine, model)
    if status is not None and status.state is not State.READY and status.error:
        return BackendFailed(status.error, hint=status.error_hint, tail=status.error_tail)
    return HttpError(
        502, "backend_error", f'the engine of "{model}" gave no proper answer: {problem}', hint="see gpudctl logs"
    )
