"""What the routes about gpud itself share: the parts that they need, how their bodies are read, what may be seen.

It answers nothing and changes nothing.
"""

import re
import time
from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import msgspec

from gpud.core import statuses
from gpud.core.engines import Family, of_family
from gpud.core.errors import InvalidArguments, NoSuchModel
from gpud.core.facts import ModelStatus, Priority, Snapshot
from gpud.core.keys import EVERYTHING
from gpud.core.ports import Files
from gpud.core.record import Record, Struct, field
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.engine_texts import EngineTexts
from gpud.http.exchange import SMALL_BODY_BYTES, Exchange
from gpud.http.feed import Feed
from gpud.http.feed_events import timestamp
from gpud.http.known_models import LLAMA_CPP_ENGINES, KnownModels
from gpud.http.lines import Lines
from gpud.http.metrics import Metrics
from gpud.http.naming import resolved
from gpud.http.shapes import UNREADABLE, HttpError, why_unreadable

T = TypeVar("T")

MIB = 1 << 20

NAME_CHARACTERS = 256
"""The longest name, path or reason that is looked at."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS)]

LLAMA_CPP = "llamacpp"
"""What clients of the ml-offload API call llama.cpp, whichever of its engines serves a model."""

KNOWN_BACKENDS = (LLAMA_CPP, *of_family(Family.OLLAMA, Family.HUB))
"""They are listed whether a model uses them or not, in the order in which they are tried."""

_ENGINES = {
    LLAMA_CPP: LLAMA_CPP_ENGINES,
    "llama.cpp": LLAMA_CPP_ENGINES,
    "llama-cpp": LLAMA_CPP_ENGINES,
    "llama-server": ("llama_server",),
}

_PRIORITIES = {"medium": Priority.NORMAL} | {priority.name.lower(): priority for priority in Priority}


class OwnSettings(Record):
    """``models_path`` is the directory of the machine's models, empty where there is none of that kind;
    ``default_model`` is what ``default`` means (empty: the one that was used last); ``attached`` are the engines that
    somebody else runs. A stream on which nothing happens says something every ``heartbeat_s``.
    """

    models_path: str = ""
    default_model: str = ""
    attached: frozenset[str] = frozenset()
    heartbeat_s: float = 15.0


class Parts(Struct):
    """``settings`` may be replaced at any time."""

    engine: Engine
    pool: Pool
    feed: Feed
    lines: Lines
    metrics: Metrics
    files: Files
    known: KnownModels
    texts: EngineTexts
    settings: OwnSettings = field(default_factory=OwnSettings)
    clock: Callable[[], float] = time.time
    began_s: float = field(default_factory=time.monotonic)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.began_s

    def now(self) -> str:
        return timestamp(self.clock())

    def time_of_day(self, snapshot: Snapshot, at_s: float | None) -> str | None:
        """A time on the engine's clock as people read it."""
        return None if at_s is None else timestamp(self.clock() - snapshot.now_s + at_s)

    async def fresh(self) -> Snapshot:
        """With figures of the devices that may be shown."""
        if not self.engine.is_fresh():
            await self.engine.refresh()
        return self.engine.snapshot()


# Bodies and queries --------------------------------------------------------------------------------------------------

_UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`", re.DOTALL)


async def asked(exchange: Exchange, kind: type[T]) -> T:
    """The body as this kind of record; nothing at all is an empty one. Raises InvalidArguments that names the field."""
    return decoded(await exchange.request.body(SMALL_BODY_BYTES), kind)


def decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body if body.strip() else b"{}", type=kind)
    except UNREADABLE as problem:
        why = why_unreadable(problem)
        unknown = _UNKNOWN_FIELD.search(why)
        if unknown is None:
            raise InvalidArguments(f"cannot read the body: {why}", hint="/docs has an example of each") from None
        # Imported here: only who mistypes needs it.
        from difflib import get_close_matches

        name, known = unknown[1], _fields(kind)
        near = get_close_matches(name, known, 1, 0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"it may have {', '.join(known)}"
        raise InvalidArguments(f"cannot read the body: there is no field {short(name)!a}", hint=hint) from None


def _fields(kind: type) -> list[str]:
    """The names that a record may have, and those of the records in it."""
    found: list[str] = []
    for one in msgspec.structs.fields(kind):
        found.append(one.encode_name)
        for inner in (one.type, *getattr(one.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                found += _fields(inner)
    return found


def short(text: str) -> str:
    return text if len(text) <= 64 else text[:63] + "…"


def number(exchange: Exchange, name: str, default: int | None, least: int, most: int) -> int | None:
    """A whole number of the query. Raises InvalidArguments."""
    text = exchange.request.parameter(name)
    if not text:
        return default
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if value is None or not least <= value <= most:
        raise InvalidArguments(f"{name} is {short(text)!a}", hint=f"it is a number from {least} to {most}")
    return value


def choice(exchange: Exchange, name: str, allowed: Iterable[str]) -> str:
    """A word of the query; empty when it is not there. Raises InvalidArguments."""
    word, known = exchange.request.parameter(name), tuple(allowed)
    if word and word not in known:
        raise InvalidArguments(f"{name} is {short(word)!a}", hint=f"it can be {', '.join(known)}")
    return word


# Words ---------------------------------------------------------------------------------------------------------------


def priority_of(said: str | int | None) -> Priority | None:
    """A priority by its name, or from 1 to 10 as the model orchestrator has it. Raises InvalidArguments."""
    if said is None or said == "":
        return None
    word = short(str(said)) if isinstance(said, str) or abs(said) < 1 << 63 else "too large a number"
    if word.lower() in _PRIORITIES:
        return _PRIORITIES[word.lower()]
    value = int(word) if re.fullmatch("[0-9]{1,2}", word) else 0
    if 1 <= value <= 10:
        return Priority.LOW if value <= 3 else Priority.NORMAL if value <= 6 else Priority(2 + (value == 10))
    raise InvalidArguments(
        f"the priority is {word!a}", hint=f"it can be {', '.join(_PRIORITIES)}, or a number from 1 to 10"
    )


def backend_name(engine: str) -> str:
    """An engine as clients of the ml-offload API know it."""
    return LLAMA_CPP if engine in LLAMA_CPP_ENGINES else engine


def engines_of(parts: Parts, backend: str) -> tuple[str, ...]:
    """The engines that somebody means by such a name; none by an empty one. Raises InvalidArguments."""
    if not backend:
        return ()
    if backend in _ENGINES:
        return _ENGINES[backend]
    configured = {one.model.engine for one in parts.engine.snapshot().models}
    known = dict.fromkeys((*KNOWN_BACKENDS, *LLAMA_CPP_ENGINES, *sorted(configured)))
    if backend in known:
        return (backend,)
    raise InvalidArguments(f"there is no backend {short(backend)!a}", hint=f"it can be {', '.join(known)}")


# Models --------------------------------------------------------------------------------------------------------------


def seen(exchange: Exchange) -> list[tuple[int, ModelStatus]]:
    """The models that the caller may know of, each with its number in the registry."""
    allowed, number_of = exchange.allowed_models, exchange.engine.library.number_of
    models = statuses.only(exchange.engine.snapshot().models, allowed)
    return [(number_of(one.model.name), one) for one in models]


def model_of(exchange: Exchange, parts: Parts, said: str | int | None, path: str = "") -> str:
    """The configured model that is meant by a name, an alias, ``default``, a number, or the path of its file.

    Raises NoSuchModel, HttpError(403) for one that the caller's key may not use, and HttpError(400) when nothing was
    said.
    """
    name = _meant(exchange, parts, said, path)
    exchange.check_model(name)
    return name


def _meant(exchange: Exchange, parts: Parts, said: str | int | None, path: str) -> str:
    if said is None or said == "":
        if not path:
            raise HttpError(
                400, "invalid_request", "no model is named", hint='send "model" (or "model_id", or "model_path")'
            )
        return _of_path(parts, path)
    text = str(said)
    try:
        return resolved(parts.engine, text, parts.settings.default_model, lambda: exchange.allowed_models)
    except NoSuchModel:
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise
        name = parts.engine.library.numbered(int(text))
        if name is None:
            raise NoSuchModel(
                f"there is no model with the id {text}", hint="GET /models lists them with theirs"
            ) from None
        return name


def _of_path(parts: Parts, path: str) -> str:
    """The model whose file this is: the whole path, or its last part."""
    models = [one.model for one in parts.engine.snapshot().models if one.model.settings.file]
    for model in models:
        if model.settings.file == path:
            return model.name
    same = [model.name for model in models if "/" not in path and model.settings.file.rpartition("/")[2] == path]
    if len(same) == 1:
        return same[0]
    raise NoSuchModel(
        f"no configured model has the file {short(path)!a}", hint="add it under models: in gpud.yaml, or name a model"
    )


def sees_all(exchange: Exchange) -> bool:
    key = exchange.admitted.key
    return key is None or EVERYTHING in key.allow


def is_stranger(exchange: Exchange) -> bool:
    """Whether nothing is known of the caller but that the door was reached: no key, and no right without one."""
    return exchange.admitted.key is None and not exchange.admitted.may


def may_see(exchange: Exchange, model: str) -> bool:
    """Whether the caller may know of what is about this model; of what is about none only one who sees all."""
    if sees_all(exchange):
        return True
    allowed = exchange.allowed_models
    return allowed is None or model in allowed


def wished_priority(exchange: Exchange, said: str | int | None) -> Priority | None:
    """The priority that is asked for, no higher than that of the caller's key; None: the model's own."""
    return exchange.admitted.priority_for(priority_of(said))


def whole(exchange: Exchange, what: str) -> None:
    """Raises HttpError(403) for a key that is for some models only: this shows what all of them do."""
    if not sees_all(exchange):
        raise HttpError(
            403,
            "permission_denied",
            f"{what} of all models may not be seen with a key that is for some of them",
            hint='use a key with "allow: [*]"',
        )


# Sizes ---------------------------------------------------------------------------------------------------------------


def gb(size_bytes: int | None) -> float | None:
    """GB as the ml-offload API counts them: 1024 MiB."""
    return None if size_bytes is None else round(size_bytes / MIB / 1024, 2)


def mb(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else size_bytes // MIB


def percent(part: int | None, total: int | None) -> float | None:
    return None if part is None or not total else round(100 * part / total, 1)
