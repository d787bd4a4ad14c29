"""The requests that are in work at the doors: who asks what of which model, since when, and how fast it is answered.

It keeps what the doors hand it and shows it on demand. It looks at no request while that passes: what is shown of an
answer is counted when somebody asks.
"""

import re
import time
from collections.abc import Callable

import msgspec

from gpud.core import statuses
from gpud.core.record import Struct, field
from gpud.http.exchange import Exchange
from gpud.http.routing import Route
from gpud.http.shapes import Api
from gpud.http.waiting import in_words

LEAST_S = 0.2
"""An answer that has come for less than this has no speed yet that means anything."""

_MEASURED = re.compile(rb'"predicted_per_second"\s*:\s*(\d{1,9}(?:\.\d{1,20})?)')


class RunningRequest(msgspec.Struct):
    """``state`` is waiting until an engine has said something, then answering; ``message`` says for what it waits.

    ``uid`` is known of callers on Unix sockets. ``tokens_per_s`` is what the engine itself told, or else counted by the
    events of a stream, of which each is a token; null where neither is known.
    """

    id: int
    door: str
    method: str
    route: str
    model: str
    caller: str
    uid: int | None
    state: str
    message: str
    since_usec: int
    duration_s: float
    first_byte_s: float | None
    sent_bytes: int
    tokens_per_s: float | None


class Served(msgspec.Struct):
    """What a model has done since gpud started; tokens as the engines counted them."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class RunningRequests(msgspec.Struct):
    """``served`` is by model; requests that are for no model are not counted there."""

    requests: list[RunningRequest]
    served: dict[str, Served]


class Requests(Struct):
    """Told by the doors when a request begins and ends. ``clock`` is the time of day."""

    clock: Callable[[], float] = time.time
    _last: int = 0
    _running: dict[int, tuple[str, Exchange]] = field(default_factory=dict)
    _served: dict[str, Served] = field(default_factory=dict)

    def began(self, door: str, exchange: Exchange) -> int:
        """The number of the request, which :meth:`ended` wants."""
        self._last += 1
        self._running[self._last] = door, exchange
        return self._last

    def ended(self, number: int) -> None:
        _, exchange = self._running.pop(number)
        if exchange.model:
            served = self._served.get(exchange.model)
            if served is None:
                served = self._served[exchange.model] = Served()
            served.requests += 1
            served.prompt_tokens += exchange.prompt_tokens or 0
            served.generated_tokens += exchange.generated_tokens or 0

    def routes(self) -> tuple[Route, ...]:
        summary = "The requests that are in work, and what each model has served"
        return (
            Route(
                "GET", "/api/requests", self._show, Api.MANAGEMENT, summary=summary, answer=RunningRequests, tag="admin"
            ),
        )

    async def _show(self, exchange: Exchange) -> None:
        """The question itself is not shown; a key that is for some models sees their requests alone."""
        allowed = exchange.allowed_models
        configured = set(statuses.names_of(exchange.engine.snapshot().models))
        for name in self._served.keys() - configured:
            del self._served[name]
        await exchange.answer(
            RunningRequests(
                [
                    self._described(number, door, one)
                    for number, (door, one) in self._running.items()
                    if one is not exchange and (allowed is None or one.model in allowed)
                ],
                {name: served for name, served in self._served.items() if allowed is None or name in allowed},
            )
        )

    def _described(self, number: int, door: str, exchange: Exchange) -> RunningRequest:
        duration_s = time.monotonic() - exchange.began_s
        waits = exchange.first_byte_s is None if exchange.model else not exchange.reply.begun
        message = ""
        if waits and exchange.model:
            message = in_words(exchange.engine, exchange.model)
        return RunningRequest(
            number,
            door,
            exchange.request.method,
            exchange.route.path,
            exchange.model,
            exchange.caller.label,
            exchange.caller.uid if exchange.caller.uid >= 0 else None,
            "waiting" if waits else "answering",
            message,
            round((self.clock() - duration_s) * 1e6),
            round(duration_s, 3),
            None if exchange.first_byte_s is None else round(exchange.first_byte_s, 3),
            exchange.reply.body_bytes,
            None if waits else _speed(exchange, duration_s),
        )


def _speed(exchange: Exchange, duration_s: float) -> float | None:
    """Tokens per second of an answer that is under way, by what of it has passed last."""
    if exchange.tail is None or exchange.first_byte_s is None:
        return None
    return tokens_per_s(exchange.tail(), exchange.reply.body_bytes, duration_s - exchange.first_byte_s)


def tokens_per_s(tail: bytes, sent_bytes: int, answered_s: float) -> float | None:
    """How fast a stream comes of which this is the end, this long after its beginning; None where that is not known.

    The events before the end are taken to be as long as those in it.
    """
    measured = _MEASURED.findall(tail)
    if measured:
        return round(float(measured[-1]), 1)
    events = tail.count(b"\n\n")
    if not events or answered_s < LEAST_S:
        return None
    return round(events / len(tail) * sent_bytes / answered_s, 1)
