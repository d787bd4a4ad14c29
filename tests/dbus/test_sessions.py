"""Sessions end with their shells, whatever ends them, and what is held for them ends with them.

The shells are real, on terminals; logind is dbusmock's.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpud.core.errors import NoSession
from gpud.core.events import SessionsChanged
from gpud.dbus.service import Service
from gpud.shells import Shells

from .fake_engine import FakeEngine
from .peers import NAME, PATH, Polkit, peer, serving
from .private_bus import NOBODY, MockLogind, PrivateBus
from .terminals import SHELLS, Terminal, source, terminal

OWN = f"{NAME}.Error."
CALL = f"busctl call {NAME} {PATH} {NAME}"


class Watched(FakeEngine):
    """An engine whose sessions are those of real shells."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.changed = asyncio.Event()
        self.shells = Shells(folder, self.session_ended)

    def tell(self, *outcomes: Any) -> None:
        super().tell(*outcomes)
        self.changed.set()
        if any(isinstance(outcome, SessionsChanged) for outcome in outcomes):
            self.shells.keep({"tiny": frozenset(self.sessions)})

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not predicate():
                self.changed.clear()
                await self.changed.wait()

    @contextlib.asynccontextmanager
    async def on(self, address: str, **more: Any) -> AsyncIterator[Service]:
        async with serving(address, self, shells=self.shells, **more) as service:
            try:
                yield service
            finally:
                await self.shells.close()


@contextlib.contextmanager
def logind_on(address: str) -> Iterator[MockLogind]:
    logind = MockLogind(address)
    try:
        yield logind
    finally:
        logind.kill()


async def typed(shell: Terminal, command: str) -> str:
    return await asyncio.to_thread(shell.run, command)


async def registered(engine: Watched, shell: Terminal, name: str) -> str:
    """The shell reads its hook; the id of its session."""
    await typed(shell, source(name))
    await engine.until(lambda: any(session.pid == shell.pid for session in engine.sessions.values()))
    return next(session.id for session in engine.sessions.values() if session.pid == shell.pid)


ENDS: dict[str, Callable[[Terminal], None]] = {
    "exit": lambda shell: shell.type("exit"),
    "end of file": lambda shell: shell.type("\x04"),
    "a closed terminal": lambda shell: shell.close(),
    "a hang-up": lambda shell: shell.kill(signal.SIGHUP),
    "kill -9": lambda shell: shell.kill(signal.SIGKILL),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("name", SHELLS)
def test_a_session_ends_with_its_shell(run: Any, private_bus: PrivateBus, tmp_path: Path, name: str, how: str) -> None:
    """Whatever ends it: nobody polls, and the shell has nothing to do for it."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal(name, private_bus.address) as shell:
                session = await registered(engine, shell, name)
                assert engine.sessions[session].uid == os.getuid()
                assert engine.sessions[session].terminal.startswith("pts/")
                assert engine.sessions[session].label.endswith(f"(pid {shell.pid})")
                ENDS[how](shell)
                await engine.until(lambda: not engine.sessions)
                assert engine.asked("session_ended")[0][2] == "its process is gone"

    run(scenario())


@pytest.mark.parametrize("name", SHELLS)
def test_the_hook_says_nothing_and_may_be_read_twice(
    run: Any, private_bus: PrivateBus, tmp_path: Path, name: str
) -> None:
    """One session, no word, no job to tell about."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal(name, private_bus.address) as shell:
                await typed(shell, "true")
                await registered(engine, shell, name)
                # A job is told about with the next prompt.
                said = await typed(shell, "true") + await typed(shell, source(name)) + await typed(shell, "true")
                for word in ("busctl", "[1]", "Done", "finished", "ended", "AttachSession"):
                    assert word not in said
                assert len(engine.asked("session_began")) == 1

    run(scenario())


@pytest.mark.parametrize("name", SHELLS)
def test_without_a_daemon_or_a_bus_the_hook_does_nothing(private_bus: PrivateBus, name: str) -> None:
    """The shell goes on at once, with its status good and without a word."""
    for address in (private_bus.address, "unix:path=/nonexistent/bus"):
        with terminal(name, address) as shell:
            shell.run("true")
            said = shell.run(f"{source(name)} && echo went on")
            assert "went on" in said.partition("\n")[2]
            assert "ail" not in said.partition("\n")[2]


def test_a_bus_that_hangs_does_not_stop_the_shell(tmp_path: Path) -> None:
    """It is connected to, and says nothing for ever: busctl waits, the shell does not."""
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "bus"))
        silent.listen(8)
        for name in SHELLS:
            with terminal(name, f"unix:path={tmp_path}/bus") as shell:
                assert "went on" in shell.run(f"{source(name)} && echo went on").partition("\n")[2]


@pytest.mark.parametrize("command", ["bash -c '. HOOK'", "sh -c '. HOOK'", "dash -u -e -c '. HOOK; echo lives'"])
def test_scripts_do_not_register(run: Any, private_bus: PrivateBus, tmp_path: Path, command: str) -> None:
    """Only somebody at work has a session; and nothing of the hook breaks a strict script."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        hook = Path(__file__).resolve().parents[2] / "shell/hooks/gpud.sh"
        async with engine.on(private_bus.address):
            done = await asyncio.create_subprocess_shell(
                command.replace("HOOK", str(hook)),
                env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": private_bus.address},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            said, _ = await done.communicate()
            assert (done.returncode, said.replace(b"lives\n", b"")) == (0, b"")
            assert engine.calls == []

    run(scenario())


def test_the_users_own_trap_is_kept(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """There is no trap of ours that could take its place, or be taken away by it."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("bash", private_bus.address) as shell:
                await typed(shell, "trap 'echo mi''ne' EXIT")
                await registered(engine, shell, "bash")
                shell.type("exit")
                await asyncio.to_thread(shell.read_until, "\nmine")
                await engine.until(lambda: not engine.sessions)

    run(scenario())


def test_another_program_in_the_shells_place_is_still_the_session(
    run: Any, private_bus: PrivateBus, tmp_path: Path
) -> None:
    """exec keeps the process, as ``exec bash`` means it; the session ends with what has taken its place."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("bash", private_bus.address) as shell:
                session = await registered(engine, shell, "bash")
                shell.type("exec dash -i")
                await typed(shell, source("sh"))
                assert list(engine.sessions) == [session]
                shell.type("exit")
                await engine.until(lambda: not engine.sessions)

    run(scenario())


def test_a_shell_in_a_shell_is_part_of_it(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """One terminal, one session; its programs' wishes are the session's."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("bash", private_bus.address) as shell:
                session = await registered(engine, shell, "bash")
                shell.type("dash -i")
                await typed(shell, source("sh"))
                await typed(shell, f"{CALL} Load s tiny")
                await typed(shell, f"{CALL} Load s big & wait")
                assert {call[2].session for call in engine.asked("load")} == {session}
                shell.type("exit")
                await typed(shell, "true")
                assert list(engine.sessions) == [session]

    run(scenario())


def test_two_terminals_are_two_sessions(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """The end of one is nothing to the other, and each has its own loads."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("bash", private_bus.address) as one, terminal("zsh", private_bus.address) as two:
                first, second = await registered(engine, one, "bash"), await registered(engine, two, "zsh")
                await typed(one, f"{CALL} Load s tiny")
                await typed(two, f"{CALL} Load s big")
                assert [(call[1], call[2].session) for call in engine.asked("load")] == [
                    ("tiny", first),
                    ("big", second),
                ]
                one.kill()
                await engine.until(lambda: list(engine.sessions) == [second])

    run(scenario())


def test_what_was_started_and_left_alone_still_belongs_to_it(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """Its parent has ended, its terminal says whose it is."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("bash", private_bus.address) as shell:
                session = await registered(engine, shell, "bash")
                await typed(shell, f"(sleep 0.1; {CALL} Load s tiny >/dev/null) & exec 3<&-")
                await engine.until(lambda: bool(engine.asked("session_began")))
                while not engine.asked("load"):
                    await typed(shell, "true")
                assert engine.asked("load")[0][2].session == session

    run(scenario())


def test_a_hold_of_the_session_lasts_as_long_as_it(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """busctl ends at once, the shell does not."""
    polkit = Polkit()

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address), polkit.on(private_bus.address):
            with terminal("bash", private_bus.address) as shell:
                session = await registered(engine, shell, "bash")
                said = await typed(shell, f"{CALL} HoldSession ss tiny 'a long day'")
                (hold,) = engine.holds.values()
                assert f"u {hold.cookie}" in said
                assert (hold.model, hold.reason, hold.caller.owner) == ("tiny", "a long day", f"session:{session}")
                assert hold.application == f"bash (pid {shell.pid})"
                (record,) = await peers_sessions(private_bus.address)
                assert (record["Id"], record["Holds"], record["Pid"]) == (session, 1, shell.pid)
                shell.kill()
                await engine.until(lambda: not engine.holds)

    run(scenario())


async def peers_sessions(address: str) -> list[dict[str, Any]]:
    async with peer(address) as client:
        return [{key: value[1] for key, value in record.items()} for record in await client.call("ListSessions")]


def test_only_the_session_itself_can_release_its_hold(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """By its cookie, or all of them together; nobody is told of an error who has none."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address), peer(private_bus.address) as stranger:
            with terminal("bash", private_bus.address) as shell:
                await registered(engine, shell, "bash")
                await typed(shell, f"{CALL} HoldSession ss tiny one")
                await typed(shell, f"{CALL} HoldSession ss tiny two")
                cookie, other = engine.holds
                assert (await stranger.refused("Release", "u", cookie)).name == f"{OWN}NoSuchHold"
                assert await stranger.call("ReleaseSession") is None
                assert len(engine.holds) == 2
                await typed(shell, f"{CALL} Release u {cookie}")
                assert list(engine.holds) == [other]
                await typed(shell, f"{CALL} ReleaseSession")
                assert engine.holds == {}

    run(scenario())


def test_a_shell_without_the_hook_can_hold_too(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """What is asked for on a terminal is held as long as its first process lives."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            with terminal("sh", private_bus.address) as shell:
                await typed(shell, f"{CALL} HoldSession ss tiny work")
                assert [session.pid for session in engine.sessions.values()] == [shell.pid]
                assert len(engine.holds) == 1
                shell.close()
                await engine.until(lambda: not engine.sessions and not engine.holds)

    run(scenario())


def test_without_a_terminal_and_logind_there_is_no_session(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """A program in no session is told what else there is."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address):
            code = (
                "import os, sys; os.setsid(); from jeepney import DBusAddress, new_method_call\n"
                "from jeepney.io.blocking import open_dbus_connection\n"
                f"where = DBusAddress({PATH!r}, {NAME!r}, {NAME!r})\n"
                "bus = open_dbus_connection(sys.argv[1])\n"
                "print(*bus.send_and_get_reply(new_method_call(where, 'HoldSession', 'ss', ('tiny', 'x'))).body)\n"
            )
            said = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", code, private_bus.address],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "it has no terminal and no login" in said.stdout
            assert "Inhibit" in said.stdout
            assert engine.holds == {}

    run(scenario())


# Who may register what -----------------------------------------------------------------------------------------------


def test_a_shell_of_somebody_else_cannot_be_registered(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """Nor one that is no more, nor one that has not asked."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(private_bus.address), peer(private_bus.address, NOBODY) as stranger:
            mine = await stranger.refused("AttachSession", "a{sv}", {"pid": ("u", os.getpid())})
            assert mine.name == f"{OWN}NoSession"
            assert f"belongs to uid {os.getuid()}" in mine.text or "has not asked" in mine.text
            gone = await stranger.refused("AttachSession", "a{sv}", {"pid": ("u", 4194304)})
            assert gone.name == f"{OWN}NoSession"
            assert (await stranger.refused("AttachSession", "a{sv}", {"uid": ("u", 1)})).name == f"{OWN}InvalidOption"
            assert engine.sessions == {}

    run(scenario())


def test_a_shell_that_has_ended_meanwhile_is_no_session(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """Its orphan is given to whoever collects such, which is no shell: they share no terminal session."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        # Python, which is this test's own and no shell of the caller's, stands for whoever collects orphans.
        orphan = subprocess.Popen(["sleep", "600"], start_new_session=True)
        try:
            with pytest.raises(NoSession, match="it has ended, or has not asked for it"):
                engine.shells.shell_of(orphan.pid, os.getuid())
        finally:
            orphan.kill()
            orphan.wait()
        with pytest.raises(NoSession, match=f"process {orphan.pid}, which asked for it, has ended"):
            engine.shells.shell_of(orphan.pid, os.getuid())

    run(scenario())


# logind --------------------------------------------------------------------------------------------------------------


def test_the_login_session_is_shown(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """What logind calls it; the shell's process counts all the same."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        with logind_on(private_bus.address) as logind:
            logind.add_session("c7", os.getpid())
            async with engine.on(private_bus.address):
                with terminal("bash", private_bus.address) as shell:
                    session = await registered(engine, shell, "bash")
                    assert engine.sessions[session].login == "c7"
                    logind.remove_session("c7")
                    await typed(shell, "true")
                    assert list(engine.sessions) == [session]

    run(scenario())


async def holder(address: str) -> subprocess.Popen[bytes]:
    """A program without a terminal that holds for its session and lives on."""
    code = (
        "import os, sys; os.setsid(); from jeepney import DBusAddress, new_method_call\n"
        "from jeepney.io.blocking import open_dbus_connection\n"
        f"where = DBusAddress({PATH!r}, {NAME!r}, {NAME!r})\n"
        "bus = open_dbus_connection(sys.argv[1])\n"
        "bus.send_and_get_reply(new_method_call(where, 'HoldSession', 'ss', ('tiny', 'x')))\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, address], check=True)
    assert done.returncode == 0
    return subprocess.Popen(["sleep", "600"])


@pytest.mark.parametrize("how", ["told", "leader", "away"])
def test_a_login_session_ends_when_its_user_logs_out(
    run: Any, private_bus: PrivateBus, tmp_path: Path, how: str
) -> None:
    """As logind tells, when who logged in has ended, and when logind was away meanwhile."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        leader = subprocess.Popen(["sleep", "600"])
        try:
            with logind_on(private_bus.address) as logind:
                logind.add_session("c9", leader.pid)
                async with engine.on(private_bus.address):
                    other = await holder(private_bus.address)
                    other.kill()
                    other.wait()
                    assert list(engine.sessions) == ["login-c9"]
                    assert [hold.caller.owner for hold in engine.holds.values()] == ["session:login-c9"]
                    if how == "told":
                        logind.remove_session("c9")
                    elif how == "leader":
                        leader.kill()
                        leader.wait()
                    else:
                        logind.kill()
                        logind.start()
                    await engine.until(lambda: not engine.sessions and not engine.holds)
        finally:
            leader.kill()
            leader.wait()

    run(scenario())


def test_logind_that_comes_back_knows_its_sessions(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """A restart of logind is no logout: the shell lives, whatever logind says meanwhile."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        with logind_on(private_bus.address) as logind:
            logind.add_session("c7", os.getpid())
            async with engine.on(private_bus.address):
                with terminal("bash", private_bus.address) as shell:
                    session = await registered(engine, shell, "bash")
                    await typed(shell, f"{CALL} HoldSession ss tiny work")
                    logind.kill()
                    await typed(shell, f"{CALL} HoldSession ss tiny more")
                    logind.start()
                    await typed(shell, "true")
                    assert list(engine.sessions) == [session]
                    assert len(engine.holds) == 2

    run(scenario())


def test_sessions_outlive_the_bus(run: Any, mortal_bus: PrivateBus, tmp_path: Path) -> None:
    """They are processes, not connections."""

    async def scenario() -> None:
        engine = Watched(tmp_path)
        async with engine.on(mortal_bus.address) as service:
            with terminal("bash", mortal_bus.address) as shell:
                session = await registered(engine, shell, "bash")
                await typed(shell, f"{CALL} HoldSession ss tiny work")
                mortal_bus.kill()
                mortal_bus.start()
                async with asyncio.timeout(50):
                    while not service.connected:
                        await asyncio.sleep(0.02)
                assert list(engine.sessions) == [session]
                assert len(engine.holds) == 1
                shell.kill()
                await engine.until(lambda: not engine.sessions and not engine.holds)

    run(scenario())


# Over a restart ------------------------------------------------------------------------------------------------------


def test_a_restarted_daemon_knows_who_is_at_work(run: Any, private_bus: PrivateBus, tmp_path: Path) -> None:
    """Those that live are watched again; those that ended meanwhile are told."""

    async def scenario() -> None:
        with terminal("bash", private_bus.address) as one, terminal("zsh", private_bus.address) as two:
            engine = Watched(tmp_path)
            async with engine.on(private_bus.address):
                first = await registered(engine, one, "bash")
                second = await registered(engine, two, "zsh")
                await engine.shells.kept()
            two.end()
            after = Watched(tmp_path)
            living, ended, users = await after.shells.restore()
            assert [session.id for session in living] == [first]
            assert [session.id for session in ended] == [second]
            assert users == {"tiny": {first, second}}
            after.sessions = {session.id: session for session in living}
            one.kill()
            await after.until(lambda: not after.sessions)
            await after.shells.close()

    run(scenario())


@pytest.mark.parametrize("text", ["", "{}", '{"sessions": [{"pid": 1}], "users": {}}', "\x00\xff", "[]"])
def test_a_damaged_record_is_no_record(run: Any, tmp_path: Path, text: str) -> None:
    """It says so in the log, and goes on with nobody."""

    async def scenario() -> None:
        (tmp_path / "sessions").write_text(text)
        shells = Shells(tmp_path, lambda _session, _reason: None)
        assert await shells.restore() == ((), (), {})
        await shells.close()

    run(scenario())


def test_another_process_with_the_same_number_is_not_taken_for_the_shell(run: Any, tmp_path: Path) -> None:
    """Its time of birth tells."""

    async def scenario() -> None:
        text = (
            '{"sessions": [{"id": "x", "uid": 0, "pid": %d, "label": "bash", "terminal": "", "login": "",'
            ' "started": 1, "tty": 0}], "users": {"tiny": ["x"]}}'
        )
        (tmp_path / "sessions").write_text(text % os.getpid())
        shells = Shells(tmp_path, lambda _session, _reason: None)
        living, ended, users = await shells.restore()
        assert (living, [session.id for session in ended], users) == ((), ["x"], {"tiny": {"x"}})

    run(scenario())
