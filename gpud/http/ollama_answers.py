"""An engine's stream of OpenAI's events, read piece by piece and told as Ollama tells it.

It reads and writes bytes that are handed to it; it holds of an answer what is needed to tell its end.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from gpud.core.record import Struct, field
from gpud.http.shapes import HttpError

EVENT_BYTES = 32 << 20
"""The longest line of an engine's stream that is held: a tool call of that length is none."""

NANO = 1_000_000_000


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(msgspec.Struct):
    content: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Timings(msgspec.Struct):
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None
    # What llama-server's own /infill tells.
    content: str | None = None
    stop: bool = False
    stop_type: str = ""


_decode = msgspec.json.Decoder(_Event).decode


class Events:
    """The data of a stream of events, whatever pieces it comes in."""

    def __init__(self, limit_bytes: int = EVENT_BYTES) -> None:
        self._rest: list[bytes] = []
        self._size = 0
        self._limit_bytes = limit_bytes

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The events that are complete now. Raises HttpError(502) for one that is too long."""
        first, *lines = piece.split(b"\n")
        self._rest.append(first)
        self._size += len(first)
        if lines:
            whole, last = b"".join(self._rest), lines.pop()
            lines.insert(0, whole)
            self._rest, self._size = [last], len(last)
        if self._size > self._limit_bytes:
            raise HttpError(
                502, "bad_gateway", f"the engine sent a line of more than {self._limit_bytes >> 20} MiB in its stream"
            )
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data and data != b"[DONE]":
                    yield data


class Part(Struct):
    """What one event adds to an answer."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.tool_calls or self.logprobs)

    def add(self, other: "Part") -> None:
        self.content += other.content
        self.thinking += other.thinking
        self.tool_calls += other.tool_calls
        self.logprobs += other.logprobs


class Reading:
    """One answer while it comes, and what is known of it at its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events = Events()
        self._calls: dict[int, _Call] = {}
        self._usage = _Usage()
        self._timings: _Timings | None = None
        self._pieces = 0
        self.began_s = clock()
        self.engine_s = self.began_s
        self.first_s: float | None = None
        self.finish = ""

    def engine_found(self) -> None:
        """The model is loaded: from now on the engine works."""
        self.engine_s = self._clock()

    def feed(self, piece: bytes) -> Iterator[Part]:
        """What a piece of the engine's body adds. Raises HttpError for an error that it tells."""
        for data in self._events.feed(piece):
            part = self._read(data)
            if part:
                if self.first_s is None:
                    self.first_s = self._clock()
                self._pieces += 1
                yield part

    def rest(self) -> Part:
        """What can only be told now that nothing more comes: the last tool calls."""
        return Part(tool_calls=[self._tool_call(call) for _, call in sorted(self._calls.items())])

    def _read(self, data: bytes) -> Part:
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise HttpError(502, "bad_gateway", "the engine sent something that is no event of a stream") from None
        if event.error is not None:
            raise HttpError(500, "backend_error", words_of(event.error) or "the engine failed without saying why")
        if event.usage is not None:
            self._usage = event.usage
        if event.timings is not None:
            self._timings = event.timings
        if event.stop:
            self.finish = "length" if event.stop_type == "limit" else "stop"
        if not event.choices:
            return Part(event.content or "")
        choice = event.choices[0]
        if choice.finish_reason:
            self.finish = choice.finish_reason
        part = Part(choice.text or "")
        if choice.logprobs is not None and choice.logprobs.content:
            part.logprobs = [_logprob(entry) for entry in choice.logprobs.content]
        if choice.delta is not None:
            part.content += choice.delta.content or ""
            part.thinking = choice.delta.reasoning_content or choice.delta.reasoning or ""
            for call in choice.delta.tool_calls or ():
                part.tool_calls += self._take(call)
        return part

    def _take(self, call: _Call) -> list[dict[str, Any]]:
        """A piece of a tool call. Returns those that are complete because the next one has begun."""
        known = self._calls.get(call.index)
        if known is not None:
            if call.function is not None and known.function is not None:
                known.function.name = known.function.name or call.function.name
                known.function.arguments = (known.function.arguments or "") + (call.function.arguments or "")
            return []
        if call.function is None:
            call.function = _Function()
        done = [self._tool_call(self._calls.pop(index)) for index in sorted(self._calls) if index < call.index]
        self._calls[call.index] = call
        return done

    @staticmethod
    def _tool_call(call: _Call) -> dict[str, Any]:
        function = call.function or _Function()
        try:
            arguments = msgspec.json.decode(function.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            raise HttpError(
                502, "bad_gateway", f'the arguments of the tool call "{function.name}" are not JSON'
            ) from None
        told = {"function": {"index": call.index, "name": function.name or "", "arguments": arguments}}
        return {"id": call.id, **told} if call.id else told

    @property
    def done_reason(self) -> str:
        return "length" if self.finish == "length" else "stop"

    @property
    def prompt_tokens(self) -> int:
        if self._usage.prompt_tokens is not None:
            return self._usage.prompt_tokens
        return 0 if self._timings is None else self._timings.cache_n + self._timings.prompt_n

    @property
    def generated_tokens(self) -> int:
        if self._usage.completion_tokens is not None:
            return self._usage.completion_tokens
        return self._pieces if self._timings is None else self._timings.predicted_n

    def figures(self) -> dict[str, int]:
        """Counts, and durations in nanoseconds: the engine's own where it tells them, else as they were seen here."""
        now_s = self._clock()
        first_s = now_s if self.first_s is None else self.first_s
        prompt_s, generated_s = first_s - self.engine_s, now_s - first_s
        if self._timings is not None:
            prompt_s, generated_s = self._timings.prompt_ms / 1000, self._timings.predicted_ms / 1000
        return {
            "total_duration": int((now_s - self.began_s) * NANO),
            "load_duration": int((self.engine_s - self.began_s) * NANO),
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": int(prompt_s * NANO),
            "eval_count": self.generated_tokens,
            "eval_duration": int(generated_s * NANO),
        }


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {name: entry[name] for name in ("token", "logprob", "bytes") if name in entry}
    if entry.get("top_logprobs"):
        told["top_logprobs"] = [_logprob(other) for other in entry["top_logprobs"]]
    return told


def words_of(error: object) -> str:
    """The sentence in an error of any of the shapes that engines have."""
    while isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail")
    return error if isinstance(error, str) else ""


# As Ollama tells it --------------------------------------------------------------------------------------------------


def created_at() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def generate_value(model: str, part: Part) -> dict[str, Any]:
    """One line of /api/generate; ``model`` is the name that the client uses."""
    value: dict[str, Any] = {"model": model, "created_at": created_at(), "response": part.content}
    if part.thinking:
        value["thinking"] = part.thinking
    if part.tool_calls:
        value["tool_calls"] = part.tool_calls
    return value | {"done": False} | ({"logprobs": part.logprobs} if part.logprobs else {})


def chat_value(model: str, part: Part) -> dict[str, Any]:
    """One line of /api/chat."""
    message: dict[str, Any] = {"role": "assistant", "content": part.content}
    if part.thinking:
        message["thinking"] = part.thinking
    if part.tool_calls:
        message["tool_calls"] = part.tool_calls
    value: dict[str, Any] = {"model": model, "created_at": created_at(), "message": message, "done": False}
    return value | ({"logprobs": part.logprobs} if part.logprobs else {})


def finished(value: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """The same as the last line."""
    return value | {"done": True, "done_reason": reading.done_reason} | reading.figures()
