"""What is made of logind's words, by a logind that answers as a test says; the daemon beside python-dbusmock's is in
tests/daemon/test_suspend.py.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from gpud.dbus.connection import ReplyError
from gpud.dbus.login1 import Login1
from gpud.dbus.logind import MANAGER, PATH, PROPERTIES, SESSION
from gpud.dbus.upower import UPower
from gpud.dbus.wire import Kind, Message, Variant

Run = Callable[..., Any]


class Line:
    """A logind. ``sessions`` are classes by name; one of None has ended since it was listed."""

    def __init__(self) -> None:
        self.sessions: dict[str, str | None] = {}
        self.manager: dict[str, object] = {}
        self.read_ends: list[tuple[str, int]] = []
        self.refuses = False
        self.meanwhile: Callable[[], None] = lambda: None

    async def call(self, _path: str, _interface: str, member: str, _signature: str = "", *values: object) -> Message:
        if member == "Inhibit":
            if self.refuses:
                raise ReplyError("org.freedesktop.login1.OperationInProgress", "it is running already")
            mine, theirs = os.pipe()
            self.read_ends.append((str(values[0]), mine))
            return Message(Kind.RETURN, fds=[theirs])
        listed = [[name, 1000, "alice", "seat0", f"{PATH}/session/{name}"] for name in self.sessions]
        return Message(Kind.RETURN, body=[listed])

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        if interface != SESSION:
            known = dict(self.manager)
            self.meanwhile()
            return known
        found = self.sessions[path.rpartition("/")[2]]
        return {} if found is None else {"Class": found}

    def held(self) -> set[str]:
        """The locks of which nobody has closed the other end."""
        open_ones = set()
        for what, end in self.read_ends:
            os.set_blocking(end, False)
            try:
                closed = os.read(end, 1) == b""
            except BlockingIOError:
                closed = False
            if not closed:
                open_ones.add(what)
        return open_ones

    def close(self) -> None:
        for _, end in self.read_ends:
            os.close(end)


class Listener:
    """Takes as long as it is told to before a sleep."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.within: list[float] = []
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()

    async def prepare(self, what: str, within_s: float) -> None:
        self.told.append(f"prepare {what}")
        self.within.append(within_s)
        try:
            await self.ready.wait()
        finally:
            self.ended.set()

    def over(self, what: str) -> None:
        self.told.append(f"over {what}")

    def sessions_idle(self, *, idle: bool) -> None:
        self.told.append(f"idle {idle}")

    def locked(self) -> None:
        self.told.append("locked")

    def logged_out(self) -> None:
        self.told.append("logged out")


def signal(member: str, *body: object) -> Message:
    signature = {"PrepareForSleep": "b", "PrepareForShutdown": "b"}.get(member, "so")
    return Message(Kind.SIGNAL, path=PATH, interface=MANAGER, member=member, signature=signature, body=list(body))


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def scene(run: Run, work: Callable[[Line, Listener, Login1], Any]) -> None:
    async def whole() -> None:
        line, listener = Line(), Listener()
        login1 = Login1(listener)
        try:
            await login1.came(line)  # type: ignore[arg-type]
            await work(line, listener, login1)
        finally:
            await login1.close()
            assert line.held() == set()
            line.close()

    run(whole())


def test_what_is_told_while_logind_is_asked_is_newer_than_its_answer(run: Run) -> None:
    """A sleep that has just begun is not over, and a delay that has just been changed holds."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        def meanwhile() -> None:
            changed = {"InhibitDelayMaxUSec": Variant("t", 10_000_000), "IdleHint": Variant("b", True)}
            login1.signal(
                Message(
                    Kind.SIGNAL,
                    path=PATH,
                    interface=PROPERTIES,
                    member="PropertiesChanged",
                    signature="sa{sv}as",
                    body=[MANAGER, changed, []],
                )
            )
            login1.signal(signal("PrepareForSleep", True))

        login1.gone()
        line.manager = {"InhibitDelayMaxUSec": 5_000_000, "IdleHint": False, "PreparingForSleep": False}
        line.meanwhile = meanwhile
        await login1.came(line)  # type: ignore[arg-type]
        await settled()
        assert "over sleep" not in listener.told
        assert [told for told in listener.told if str(told).startswith("idle")][-1] == "idle True"
        assert listener.within[-1] == 8.0

    scene(run, work)


def test_what_upower_tells_while_it_is_asked_is_newer_than_its_answer(run: Run) -> None:
    """The plug was pulled in that moment."""

    async def work() -> None:
        told: list[bool | None] = []
        upower, line = UPower(told.append), Line()
        line.manager = {"OnBattery": False}
        pulled = Message(
            Kind.SIGNAL,
            path="/org/freedesktop/UPower",
            interface=PROPERTIES,
            member="PropertiesChanged",
            signature="sa{sv}as",
            body=["org.freedesktop.UPower", {"OnBattery": Variant("b", True)}, []],
        )
        line.meanwhile = lambda: upower.signal(pulled)
        await upower.came(line)  # type: ignore[arg-type]
        assert told == [True]
        line.meanwhile = lambda: None
        upower.gone()
        await upower.came(line)  # type: ignore[arg-type]
        assert told == [True, None, False]

    run(work())


def test_a_session_that_ends_while_it_is_looked_at_is_nobody_who_leaves(run: Run) -> None:
    """As cron's do: it was not there before, so that nobody has logged out."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        line.sessions = {"7": None}
        login1.signal(signal("SessionNew", "7", f"{PATH}/session/7"))
        await settled()
        line.sessions = {}
        login1.signal(signal("SessionRemoved", "7", f"{PATH}/session/7"))
        await settled()
        assert listener.told == []
        line.sessions = {"8": "user"}
        login1.signal(signal("SessionNew", "8", f"{PATH}/session/8"))
        await settled()
        line.sessions = {"8": None}
        login1.signal(signal("SessionRemoved", "1", f"{PATH}/session/1"))
        await settled()
        assert listener.told == []
        line.sessions = {"9": "greeter", "10": "manager-early"}
        login1.signal(signal("SessionRemoved", "8", f"{PATH}/session/8"))
        await settled()
        assert listener.told == ["logged out"]

    scene(run, work)


def test_who_logged_out_while_logind_was_away_has_logged_out(run: Run) -> None:
    """The next one is asked who is there."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        line.sessions = {"8": "user-light"}
        login1.signal(signal("SessionNew", "8", f"{PATH}/session/8"))
        await settled()
        login1.gone()
        line.sessions = {}
        await login1.came(line)  # type: ignore[arg-type]
        assert listener.told == ["logged out"]

    scene(run, work)


def test_the_lock_is_let_go_when_all_is_done_and_not_before(run: Run) -> None:
    """That of the sleep alone; it is taken again before anything is told of the waking."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        assert line.held() == {"sleep", "shutdown"}
        login1.signal(signal("PrepareForSleep", True))
        await settled()
        assert line.held() == {"sleep", "shutdown"}
        listener.ready.set()
        await settled()
        assert line.held() == {"shutdown"}
        login1.signal(signal("PrepareForSleep", False))
        await settled()
        assert listener.told == ["prepare sleep", "over sleep"]
        assert line.held() == {"sleep", "shutdown"}

    scene(run, work)


def test_the_lock_is_let_go_in_time_whatever_is_not_done(run: Run) -> None:
    """By 80 % of what logind grants, whoever does not come to an end; a delay of its own is believed."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        login1.gone()
        line.manager = {"InhibitDelayMaxUSec": 50_000}
        await login1.came(line)  # type: ignore[arg-type]
        login1.signal(signal("PrepareForSleep", True))
        await asyncio.wait_for(listener.ended.wait(), 30)
        await settled()
        assert listener.within == pytest.approx([0.04])
        assert line.held() == {"shutdown"}

    scene(run, work)


def test_a_logind_that_refuses_a_lock_is_listened_to_all_the_same(run: Run) -> None:
    """As one does that has begun already: engines end, although it may not wait for them."""

    async def work(line: Line, listener: Listener, login1: Login1) -> None:
        login1.gone()
        line.refuses, line.manager = True, {"PreparingForSleep": True}
        await login1.came(line)  # type: ignore[arg-type]
        await settled()
        assert line.held() == set()
        assert listener.told == ["prepare sleep"]
        line.refuses = False
        login1.signal(signal("PrepareForSleep", False))
        await settled()
        assert listener.told == ["prepare sleep", "over sleep"]
        assert line.held() == {"sleep"}

    scene(run, work)
