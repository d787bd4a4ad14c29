"""What a fault is: what it does, what may be cut by it, how is seen that it is over. And the list of all of them."""

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from daemon.doors import HELLO, Told
from daemon.harness import CallFailed, Client, Ended, settle

from bench.faults.account import Account
from bench.faults.clients import CHAT, GONE, Load, job
from bench.faults.system import System

OVER_S = 45.0
"""How long it may take until everything works again; what takes milliseconds alone waits for others under load."""


class Cuts(StrEnum):
    """Whose answers may be cut."""

    NOBODY = "nobody"
    MODEL = "model"
    ALL = "all"


@dataclass
class Scene:
    """One time that a fault happens. ``model`` is drawn for it."""

    system: System
    load: Load
    account: Account
    chance: random.Random
    model: str

    def ask(self, model: str, **body: object) -> Told:
        return self.system.doors.front.ask(CHAT, {"model": model, "messages": HELLO, **body})

    def answers(self, *models: str) -> None:
        """Each of them answers, whole. Refusals are waited out; who has failed for good is forgiven."""
        deadline = time.monotonic() + OVER_S
        for model in models or (self.model,):
            said = ""
            while True:
                with contextlib.suppress(*GONE):
                    told = self.ask(model)
                    if told.status == 200:
                        break
                    said = told.body.decode("utf-8", "replace")
                    if "gpudctl reset" in said:
                        self.forgive(model)
                if time.monotonic() > deadline:
                    raise AssertionError(f"{model} does not answer within {OVER_S:g} s: {said}")
                time.sleep(0.05)

    def loaded(self, model: str) -> None:
        """It answers, so it has an engine now."""
        self.answers(model)

    def engine_of(self, model: str) -> int:
        """The PID of its engine, which is loaded for that."""
        for _ in range(20):
            self.answers(model)
            if pid := self.system.pid_of(model):
                return pid
        raise AssertionError(f"{model} answers and has no engine")

    def forgive(self, model: str) -> None:
        with self.client() as client, contextlib.suppress(CallFailed):
            job(client, "Unload", model)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        made = Client(self.system.bus.address)
        try:
            yield made
        finally:
            made.close()

    def load_job(self, model: str) -> Ended:
        with self.client() as client:
            return job(client, "Load", model)

    def unload_job(self, model: str) -> Ended:
        with self.client() as client:
            return job(client, "Unload", model)

    def end(self, process: "subprocess.Popen[str]") -> None:
        """kill -9 of a program of this fault's own."""
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()

    def until(self, reached: Callable[[], bool], what: str) -> None:
        settle(reached, what)


Over = Callable[[], None]
"""Returns when everything works again; raises AssertionError when it does not."""


@dataclass(frozen=True)
class Fault:
    """``happen`` brings it about, takes away what it put in the way, and gives how to see that it is over.

    Meanwhile answers of ``cuts`` and of the models in ``also`` may be cut, and what is asked in one of the ways
    ``kinds``; and whoever asks may be refused for one of the reasons in ``refusals``.
    """

    name: str
    happen: Callable[[Scene], Over]
    cuts: Cuts = Cuts.NOBODY
    refusals: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    needs_disk: bool = False
    needs_real: bool = False
    about: str = ""

    def models(self, scene: Scene) -> frozenset[str] | None:
        if self.cuts is Cuts.ALL:
            return None
        return self.also | (frozenset({scene.model}) if self.cuts is Cuts.MODEL else frozenset())


FAULTS: dict[str, Fault] = {}


def fault(
    cuts: Cuts = Cuts.NOBODY,
    *refusals: str,
    also: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    needs_disk: bool = False,
    needs_real: bool = False,
) -> Callable[[Callable[[Scene], Over]], Callable[[Scene], Over]]:
    """Puts a function on the list, under its own name; its docstring says what happens."""

    def listed(happen: Callable[[Scene], Over]) -> Callable[[Scene], Over]:
        name = happen.__name__.replace("_", "-")
        about = " ".join((happen.__doc__ or "").split())
        sets = (frozenset(refusals), frozenset(also), frozenset(kinds))
        FAULTS[name] = Fault(name, happen, cuts, *sets, needs_disk, needs_real, about)
        return happen

    return listed


def drawn(chance: random.Random, count: int, names: list[str]) -> list[str]:
    """Every fault as often as every other one, in an order that only the seed decides."""
    order: list[str] = []
    while len(order) < count:
        round_ = list(names)
        chance.shuffle(round_)
        order += round_
    return order[:count]


def message(model: str, **body: object) -> bytes:
    """A question as it goes over the wire, on a connection that ends with its answer."""
    data = json.dumps({"model": model, "messages": HELLO, **body}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
