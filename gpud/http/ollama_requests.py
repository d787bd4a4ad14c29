"""What the clients of Ollama ask, put into the words of OpenAI's API, which every engine of gpud's speaks.

It sends nothing, and knows no engine: what of a request gpud cannot do is refused here, in a sentence.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from gpud.http.shapes import UNREADABLE, HttpError, why_unreadable

T = TypeVar("T", bound="Wish")

FOR_EVER_S = 10 * 365 * 86400.0
"""A keep_alive that is longer means: until somebody unloads it."""

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_INTEGERS = {"top_k": "top_k", "repeat_last_n": "repeat_last_n", "num_keep": "n_keep"}
"""Options by Ollama's name, and what an engine calls them. What is in neither table concerns how a model is loaded, or
is of Ollama's past; both are gpud's business and are ignored."""

_EFFORTS = ("low", "medium", "high", "max")

_IMAGE_TYPES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class Wish(msgspec.Struct, kw_only=True):
    """What every request to a model has. ``keep_alive`` is a number of seconds or a duration in Go's writing."""

    model: str = ""
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None

    @property
    def keep_s(self) -> float | None:
        """How long the client wants the model kept: 0 means not at all, infinity for ever, None as it is."""
        return None if self.keep_alive is None else duration_s(self.keep_alive)

    @property
    def context(self) -> int | None:
        """The context that the client wants it loaded with."""
        value = (self.options or {}).get("num_ctx")
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _bad('option "num_ctx" must be of type integer')
        return int(value) if 0 < value < 1 << 31 else None


class Talk(Wish, kw_only=True):
    """What chat and generate share."""

    stream: bool | None = None
    format: Any = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def streams(self) -> bool:
        return self.stream is not False


class Generate(Talk, kw_only=True):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context_tokens: list[int] | None = msgspec.field(name="context", default=None)
    raw: bool = False
    images: list[str] | None = None

    @property
    def asks_nothing(self) -> bool:
        """Whether only the model's being loaded, or not, is wanted."""
        return not self.prompt and not self.suffix


class ToolFunction(msgspec.Struct):
    name: str
    arguments: Any = None


class ToolCall(msgspec.Struct):
    function: ToolFunction
    id: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str = ""
    tool_call_id: str = ""


class Chat(Talk, kw_only=True):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: list[Any] | None = None

    @property
    def asks_nothing(self) -> bool:
        return not self.messages


class Embed(Wish, kw_only=True):
    """POST /api/embed."""

    input: str | list[str] | None = None
    dimensions: int = 0

    @property
    def texts(self) -> list[str]:
        return [] if not self.input else [self.input] if isinstance(self.input, str) else self.input


class Embeddings(Wish, kw_only=True):
    """POST /api/embeddings, as it was before there was /api/embed."""

    prompt: str = ""


class Named(msgspec.Struct):
    """A request that only names a model, in the old way or the new."""

    model: str = ""
    name: str = ""
    verbose: bool = False


def read(body: bytes, kind: type[T]) -> T:
    """A body as this kind of request. Raises HttpError(400)."""
    return _decoded(body, kind)


def read_named(body: bytes) -> Named:
    return _decoded(body, Named)


R = TypeVar("R")


def _decoded(body: bytes, kind: type[R]) -> R:
    if not body.strip():
        raise _bad("missing request body")
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as problem:
        raise _bad(f"cannot read the body: {why_unreadable(problem)}") from None


def duration_s(value: float | str) -> float:
    """A keep_alive in seconds; infinity for a negative or a very long one. Raises HttpError(400)."""
    if isinstance(value, str):
        text = value.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        bare = text.lstrip("+-")
        parts = _DURATION.findall(bare)
        if parts and "".join(number + unit for number, unit in parts) == bare:
            value = sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)
        else:
            try:
                value = float(text)
            except ValueError:
                raise _bad(f'cannot read keep_alive "{text[:40]}"', 'write "10m", "1h30m", seconds, or -1') from None
    if value != value:  # NaN, which only a text can be.
        raise _bad('cannot read keep_alive "nan"', 'write "10m", "1h30m", seconds, or -1')
    return float("inf") if value < 0 or value > FOR_EVER_S else float(value)


# To the engine -------------------------------------------------------------------------------------------------------


def chat_body(asked: Chat) -> dict[str, Any]:
    """For /v1/chat/completions. Raises HttpError(400)."""
    body = _talk_body(asked)
    body["messages"] = _messages(asked.messages)
    if asked.tools:
        body["tools"] = asked.tools
    return body


def generate_request(asked: Generate) -> tuple[str, dict[str, Any]]:
    """Where an engine is asked that, and with which body. Raises HttpError(400) for what cannot be done."""
    if asked.template:
        raise _bad(
            'cannot use "template": a model of gpud\'s has the template of its file',
            "apply it yourself and send raw: true, or set chat_template in gpud.yaml",
        )
    if asked.context_tokens:
        raise _bad('cannot go on from "context": gpud keeps no tokens', "send the conversation to /api/chat")
    if asked.suffix:
        infill = {"input_prefix": asked.prompt, "input_suffix": asked.suffix, "prompt": "", "stream": True}
        options = _options(asked.options)
        if "max_tokens" in options:
            options["n_predict"] = options.pop("max_tokens")
        return "/infill", infill | options | _grammar(asked.format)
    if asked.raw:
        if asked.images:
            raise _bad("cannot put images into a raw prompt", "leave raw away, or use /api/chat")
        body = {"prompt": asked.prompt, "stream": True, "stream_options": {"include_usage": True}}
        if asked.logprobs:
            body["logprobs"] = max(1, asked.top_logprobs)
        return "/v1/completions", body | _options(asked.options) | _grammar(asked.format)
    body = _talk_body(asked)
    messages = [Message("system", asked.system)] if asked.system else []
    body["messages"] = _messages([*messages, Message("user", asked.prompt, images=asked.images)])
    return "/v1/chat/completions", body


def _talk_body(asked: Talk) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    body |= _options(asked.options)
    schema = _schema(asked.format)
    if schema == "json":
        body["response_format"] = {"type": "json_object"}
    elif schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}
    if isinstance(asked.think, str):
        if asked.think not in _EFFORTS:
            raise _bad(f'cannot think "{asked.think[:40]}"', f"think is true, false, or one of {', '.join(_EFFORTS)}")
        body["reasoning_effort"] = asked.think
        body["chat_template_kwargs"] = {"enable_thinking": True, "reasoning_effort": asked.think}
    elif asked.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": asked.think}
    if asked.logprobs:
        body["logprobs"] = True
        if asked.top_logprobs:
            body["top_logprobs"] = asked.top_logprobs
    return body


def _options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if value is None:
            continue
        if name in _NUMBERS:
            body[_NUMBERS[name]] = _number(name, value)
        elif name in _INTEGERS:
            body[_INTEGERS[name]] = int(_number(name, value))
        elif name == "seed" and _number(name, value) >= 0:
            body["seed"] = int(value)
        elif name == "num_predict" and _number(name, value) >= 0:
            body["max_tokens"] = int(value)
        elif name == "stop":
            if isinstance(value, str):
                value = [value]
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise _bad('option "stop" must be of an array of strings')
            body["stop"] = value
    return body


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(f'option "{name}" must be a number')
    return value


def _schema(wanted: Any) -> Mapping[str, Any] | Literal["json"] | None:
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return "json"
    if isinstance(wanted, dict):
        return wanted
    raise _bad(f"invalid format: {str(wanted)[:40]}", 'it is "json" or a JSON schema')


def _grammar(wanted: Any) -> dict[str, Any]:
    """As :func:`_schema`, where there is no response_format."""
    schema = _schema(wanted)
    return {} if schema is None else {"json_schema": {"type": "object"} if schema == "json" else schema}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    calls = 0
    for message in messages:
        role = message.role.lower()
        told: dict[str, Any] = {"role": role, "content": _content(message)}
        if message.thinking:
            told["reasoning_content"] = message.thinking
        if message.tool_calls:
            told["tool_calls"] = []
            for call in message.tool_calls:
                calls += 1
                identity = call.id or f"call_{calls}"
                open_calls.append((identity, call.function.name))
                told["tool_calls"].append(
                    {
                        "id": identity,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
                    }
                )
        if role == "tool":
            told["tool_call_id"] = _answered(message, open_calls)
            if message.tool_name:
                told["name"] = message.tool_name
        found.append(told)
    return found


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode({} if value is None else value).decode()


def _answered(message: Message, open_calls: list[tuple[str, str]]) -> str:
    """Which call a tool's message answers: the one that it names, else the first that is open for the tool."""
    found = next(
        (
            call
            for call in open_calls
            if call[0] == message.tool_call_id or (not message.tool_call_id and message.tool_name in ("", call[1]))
        ),
        None,
    )
    if found is None:
        return message.tool_call_id or "call_0"
    open_calls.remove(found)
    return found[0]


def _content(message: Message) -> str | list[dict[str, Any]]:
    text = message.content or ""
    if not message.images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return [*parts, *(_image(image) for image in message.images)]


def _image(image: str) -> dict[str, Any]:
    """One image (or sound: Ollama's clients send that as an image too) as a part of a message."""
    if image.startswith("data:image/"):
        return {"type": "image_url", "image_url": {"url": image}}
    try:
        start = base64.b64decode(image[:32], validate=True)
    except (binascii.Error, ValueError):
        raise _bad("cannot read an image: it is not base64", "send its bytes as base64") from None
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        return {"type": "input_audio", "input_audio": {"data": image, "format": "wav"}}
    kind = "image/webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else ""
    kind = kind or next((name for mark, name in _IMAGE_TYPES if start.startswith(mark)), "image/png")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{image}"}}


def _bad(message: str, hint: str = "") -> HttpError:
    return HttpError(400, "invalid_request", message, hint=hint)
