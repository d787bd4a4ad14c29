"""Keeps the clients of streams company while a model loads or waits its turn: comments that every client skips, and
events with the progress for those who asked. It never speaks once an engine does.
"""

import asyncio
import contextlib

import msgspec

from gpud.core import statuses
from gpud.core.facts import ModelStatus, State
from gpud.engine import Engine
from gpud.http.connection import ClientGone
from gpud.http.exchange import Exchange

STREAM = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))


class Waiting:
    """One client's wait. It begins now; :meth:`stop` ends it, and must be called.

    For ``first_s`` nothing is said: what fails within it keeps its status, and what is ready by then is answered as it
    is. Then something is said ``every_s``.
    """

    def __init__(
        self, exchange: Exchange, engine: Engine, model: str, *, first_s: float, every_s: float, tells: bool
    ) -> None:
        self._exchange = exchange
        self._engine = engine
        self._model = model
        self._every_s = every_s
        self._tells = tells
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(first_s, self._begin)

    async def stop(self) -> None:
        """Nothing more is said after this."""
        self._timer.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def cut(self) -> None:
        """As :meth:`stop`, where nothing will be written any more."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._beat(), name=f"wait-{self._model}")

    async def _beat(self) -> None:
        reply = self._exchange.reply
        # A client that has left is told to its handler's task.
        with contextlib.suppress(ClientGone):
            await reply.begin(200, [*STREAM, *self._exchange.headers])
            while True:
                text = f": gpud waits: {in_words(self._engine, self._model)}\n\n".encode()
                if self._tells:
                    text += (
                        b"event: gpud.progress\ndata: "
                        + msgspec.json.encode(as_value(self._engine, self._model))
                        + b"\n\n"
                    )
                await reply.write(text)
                await asyncio.sleep(self._every_s)


def status_of(engine: Engine, model: str) -> ModelStatus | None:
    return statuses.status_of(engine.snapshot().models, model)


def in_words(engine: Engine, model: str) -> str:
    """One line: what is being waited for, and how far it is."""
    status = status_of(engine, model)
    if status is None:
        what = "it is no longer there"
    elif status.waits_for:
        what = status.waits_for
    elif status.state is State.LOADING:
        stage = next((job.stage for job in engine.snapshot().jobs if job.model == model and job.stage), "")
        what = _STAGES.get(stage, "loading")
        if status.progress is not None:
            what += f" {status.progress * 100:.0f} %"
    elif status.state is State.BACKOFF:
        what = f"{status.error or 'its engine failed'}; it will be started again"
    elif status.state is State.READY:
        what = "its engine has the request"
    elif status.state.has_engine():
        what = "it is being unloaded, and will be loaded again"
    else:
        what = "it will be loaded"
    return " ".join(f'"{model}": {what}'.split())


_STAGES = {"starting": "starting its engine", "text_model": "loading weights", "mmproj_model": "loading its projector"}


def as_value(engine: Engine, model: str) -> dict[str, object]:
    """The same for programs."""
    status = status_of(engine, model)
    return {
        "model": model,
        "state": status.state.value if status is not None else "unknown",
        "progress": status.progress if status is not None else None,
        "message": in_words(engine, model),
    }
