"""Anything in any order: loads, unloads, holds, cancelations, reloads and kill -9, drawn by a seed.

    GPUD_TEST_SEEDS=1-50 pytest tests/daemon/test_anything.py

tries others than the one that every run tries.
"""

import contextlib
import os
import random
import signal
import time

import pytest

from .harness import CallFailed, Client, Daemon, Place, engine, script


def _seeds() -> list[int]:
    first, _, last = os.environ.get("GPUD_TEST_SEEDS", "7").partition("-")
    return list(range(int(first), int(last or first) + 1))


MODELS = {
    "quick": engine(size="200MiB"),
    "slow": engine("--ready-after", "0.2", size="200MiB"),
    "brief": engine("--exit-after", "0.3", size="200MiB"),
    "deaf": engine("--ignore-term", size="200MiB", stop={"drain": 1, "term": "100ms", "second_term": "100ms"}),
    "sad": script("exit 9", size="200MiB"),
    "parent": engine("--fork-holder", size="300MiB"),
    "restless": engine(size="200MiB", idle_timeout="200ms"),
    "never": engine("--never-healthy", size="100MiB", load_timeout="1s"),
}
SECTIONS = {"gpu": {"host_budget": "600MiB"}, "restart": {"first": 0.1, "max": 0.2, "attempts": 3}}


class Chaos:
    """One run: what is done at random, and what every answer has to be."""

    def __init__(self, place: Place, daemon: Daemon, dice: random.Random) -> None:
        self.place = place
        self.daemon = daemon
        self.dice = dice
        self.jobs: list[int] = []
        self.cookies: list[tuple[Client, int]] = []

    def step(self) -> None:
        kinds = [self.load] * 6 + [self.unload] * 3 + [self.kill] * 2
        kinds += [self.cancel, self.hold, self.release, self.reload, self.vanish, self.unload_all]
        try:
            self.dice.choice(kinds)()
        except CallFailed as refused:
            known = ("NoSuchModel", "NotLoaded", "Busy", "BackendFailed", "NoSuchJob", "NoSuchHold")
            limits = "org.freedesktop.DBus.Error.LimitsExceeded"
            assert refused.name in (*known, limits), f"{refused}\n{self.daemon.log()}"

    def name(self) -> str:
        return self.dice.choice(list(MODELS))

    def load(self) -> None:
        self.jobs.append(self.daemon.ask_load(self.name(), evict=("b", self.dice.random() < 0.8)))

    def unload(self) -> None:
        options = {"force": ("b", True)} if self.dice.random() < 0.3 else {}
        self.jobs.append(self.daemon.call("UnloadWithOptions", "sa{sv}", self.name(), options))

    def unload_all(self) -> None:
        self.jobs.append(self.daemon.call("UnloadAll"))

    def cancel(self) -> None:
        if self.jobs:
            self.daemon.call("CancelJob", "u", self.dice.choice(self.jobs[-5:]))

    def hold(self) -> None:
        client = self.place.client()
        self.cookies.append((client, client.call("Hold", "sss", self.name(), "chance", "test")))

    def release(self) -> None:
        if self.cookies:
            client, cookie = self.cookies.pop(self.dice.randrange(len(self.cookies)))
            client.call("Release", "u", cookie)

    def vanish(self) -> None:
        if self.cookies:
            self.cookies.pop(self.dice.randrange(len(self.cookies)))[0].close()

    def reload(self) -> None:
        kept = [name for name in MODELS if self.dice.random() < 0.8]
        changed = {name: {**MODELS[name], "load_timeout": f"{self.dice.randrange(1000, 1500)}ms"} for name in kept}
        self.place.configure(changed | {"spare": engine()}, **SECTIONS)
        self.daemon.reload()

    def kill(self) -> None:
        pids = list(self.place.children())
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(pids), self.dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))


@pytest.mark.parametrize("seed", _seeds())
def test_whatever_is_asked_every_job_ends_and_nothing_is_left(place: Place, seed: int) -> None:
    """A hundred steps; then every job has ended, and the daemon is as good as new."""
    place.configure(MODELS | {"spare": engine()}, **SECTIONS)
    daemon = place.start()
    chaos = Chaos(place, daemon, random.Random(seed))
    for _ in range(100):
        chaos.step()
        time.sleep(chaos.dice.choice([0, 0, 0.005, 0.05]))  # Some things meet in one turn, some follow each other.
    for client, _ in chaos.cookies:
        client.close()
    place.configure(MODELS | {"spare": engine()}, **SECTIONS)
    daemon.reload()
    last = daemon.unload(force=True)
    assert last.result == "done", last
    for job in chaos.jobs:
        daemon.wait_job(job)
    assert not daemon.call("Status")["Jobs"][1]
    assert not daemon.call("Status")["Holds"][1]
    for name in MODELS:
        if daemon.state(name) != "unloaded":
            daemon.unload(name, force=True)
    daemon.aftermath()
