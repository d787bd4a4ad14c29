"""One request on its way through gpud: who asks, by which route, and how it is answered."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gpud.core import statuses
from gpud.core.errors import GpudError, InvalidArguments
from gpud.core.facts import Caller
from gpud.core.record import Struct, field
from gpud.engine import Engine
from gpud.http.access import Admitted
from gpud.http.message import Reply, Request
from gpud.http.routing import Route
from gpud.http.shapes import UNREADABLE, error_body, headers_of, status_of, why_unreadable

JSON = ("Content-Type", "application/json")

LOAD_HEADER = "X-Gpud-Load-Seconds"
"""On an answer for which its model had to be loaded."""

SMALL_BODY_BYTES = 1 << 20
"""The body of a question to gpud itself. What goes to an engine has a limit of its own."""


class Exchange(Struct):
    """Belongs to one request. ``headers`` go out with whatever is answered (CORS). ``model`` is the configured name of
    the model that it turned out to be for; tokens are None where the engine did not count them. ``tail`` gives what
    passed last of an engine's answer.
    """

    request: Request
    reply: Reply
    route: Route
    parameters: Mapping[str, str]
    engine: Engine
    admitted: Admitted
    headers: tuple[tuple[str, str], ...] = ()
    model: str = ""
    began_s: float = field(default_factory=time.monotonic)
    first_byte_s: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    tail: Callable[[], bytes] | None = None

    @property
    def caller(self) -> Caller:
        return self.admitted.caller

    def tell_load(self, waited_s: float) -> None:
        """The model was not there: what is answered says how long it took until it was."""
        others = (header for header in self.headers if header[0] != LOAD_HEADER)
        self.headers = (*others, (LOAD_HEADER, f"{waited_s:.3f}"))

    @property
    def allowed_models(self) -> frozenset[str] | None:
        """The configured names of the models that the caller may use and see; None: all of them."""
        if self.admitted.key is None:
            return None
        models = statuses.names_with_aliases(self.engine.snapshot().models)
        return frozenset(name for name, aliases in models if self.admitted.allows(name, *aliases))

    def check_model(self, name: str) -> None:
        """Raises Denied for a model that the caller's key may not use."""
        if self.admitted.allows(name):
            return
        found = statuses.status_of(self.engine.snapshot().models, name)
        self.admitted.require(name, *(() if found is None else found.model.aliases))

    async def value(self, limit_bytes: int = SMALL_BODY_BYTES) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object. Raises InvalidArguments."""
        return read_object(await self.request.body(limit_bytes))

    async def answer(self, value: object, status: int = 200, *headers: tuple[str, str]) -> None:
        await self.send(msgspec.json.encode(value), JSON, *headers, status=status)

    async def text(self, text: str, status: int = 200) -> None:
        await self.send(text.encode(), ("Content-Type", "text/plain; charset=utf-8"), status=status)

    async def send(self, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        await self.reply.send(status, [*headers, *self.headers], body)

    async def send_parts(self, parts: Sequence[bytes], *headers: tuple[str, str]) -> None:
        """The same of what stands in many parts."""
        await self.reply.send_parts(200, [*headers, *self.headers], parts)

    async def fail(self, error: GpudError) -> None:
        """Answer with the error in the shape of the API that was asked, if nothing was begun."""
        headers = [JSON, *headers_of(error).items(), *self.headers]
        await self.reply.send(status_of(error), headers, error_body(self.route.api, error))


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object; nothing at all is an empty one. Raises InvalidArguments that says what is wrong."""
    if not body.strip():
        return {}
    try:
        value = msgspec.json.decode(body)
    except UNREADABLE as problem:
        raise InvalidArguments(f"cannot read the body: {why_unreadable(problem)}", hint="send a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidArguments(f"the body is a JSON {type(value).__name__}, not an object", hint="send a JSON object")
    return value
