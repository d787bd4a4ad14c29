"""Starting real processes: what they get, what they print, how a start fails."""

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_parts import BOUND_S, PATIENT, Lines, MemoryFdStore, command, is_running, python, shell

from gpud.core.errors import BackendFailed
from gpud.core.facts import Exit
from gpud.core.ports import Command, Stream
from gpud.processes.launcher import ProcessLauncher

Run = Callable[..., Any]


async def finished(launcher: ProcessLauncher, order: Command) -> Exit:
    child = await launcher.spawn(order)
    ended = await asyncio.wait_for(child.wait(), BOUND_S)
    assert await launcher.close() == ()
    return ended


def test_output_arrives_line_by_line_with_its_stream(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Both pipes are read; each line carries model, engine and PID."""
    ended = run(finished(launcher, shell("echo to out; echo to err >&2; exit 3")))
    assert ended.code == 3
    assert set(sink.kept) == {(Stream.OUT, "to out"), (Stream.ERR, "to err")}
    assert sink.models == {("tiny", "custom")} and sink.pids == {ended.pid}
    assert set(ended.tail) == {"to out", "to err"}


def test_child_that_ends_at_once_is_a_child_that_ended(launcher: ProcessLauncher, run: Run) -> None:
    """Even with the shell's own codes: a program may end with 127 itself."""
    assert run(finished(launcher, shell("exit 127"))).code == 127


def test_death_by_signal_is_a_negative_code(launcher: ProcessLauncher, run: Run) -> None:
    """As everywhere in Python."""
    ended = run(finished(launcher, shell("kill -ABRT $$")))
    assert ended.code == -signal.SIGABRT and not ended.oom_killed


def test_binary_output_is_harmless(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Bytes that are no text appear as escapes; NULs too."""
    run(finished(launcher, shell(r"printf '\000\377\033[2Jx\n'")))
    assert sink.texts == ["\\x00\\xff\\x1b[2Jx"]


def test_child_may_close_its_output_and_go_on(
    launcher: ProcessLauncher, sink: Lines, store: MemoryFdStore, run: Run
) -> None:
    """The end of a pipe is not the end of the child."""

    async def scene() -> Exit:
        child = await launcher.spawn(shell("exec >&-; echo closed >&2; read line; exit 5", lease=True))
        await sink.until(lambda text: text == "closed")
        while "tiny-1.out" in store.kept:
            await asyncio.sleep(0)
        assert child.alive()
        child.close_lease()
        return await child.wait()

    assert run(scene()).code == 5


def test_child_gets_a_clean_process(launcher: ProcessLauncher, sink: Lines, tmp_path: Path, run: Run) -> None:
    """Its directory, its session, nothing on stdin, and not one descriptor too many."""
    script = """
import os, sys
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
print("fds", [fd for fd in range(1000) if is_open(fd)])
print("session", os.getsid(0) == os.getpid(), "directory", os.getcwd(), "stdin", repr(sys.stdin.read()))
print("score", open("/proc/self/oom_score_adj").read().strip(), "marker", os.environ["GPUD_CHILD"].split(":")[0])
"""
    leak = os.dup(0)
    os.set_inheritable(leak, True)
    try:
        ended = run(finished(launcher, python(script, directory=str(tmp_path))))
    finally:
        os.close(leak)
    assert sink.texts == [
        "fds [0, 1, 2]",
        f"session True directory {tmp_path} stdin ''",
        f"score 500 marker {ended.pid}",
    ]


def test_child_starts_with_default_signals(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Nothing blocked, nothing ignored, whatever the daemon does about signals (Python ignores SIGPIPE)."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        run(finished(launcher, command("grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")))
    finally:
        signal.signal(signal.SIGUSR2, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    # The C library ignores its own two, 32 and 33, in whatever it spawns.
    masks = {text.split()[0]: int(text.split()[1], 16) & 0x7FFFFFFF for text in sink.texts}
    assert masks == {"SigBlk:": 0, "SigIgn:": 0}


def test_arguments_reach_the_program_unchanged(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """No shell looks at them."""
    odd = ("", "a b", "$HOME `id` \"'\\", "*", "-n", "ü\n\tx")
    run(finished(launcher, python("import sys; print(ascii(sys.argv[1:]))")))
    sink.kept.clear()
    order = command(sys.executable, "-I", "-c", "import sys; print(ascii(tuple(sys.argv[1:])))", *odd)
    run(finished(launcher, order))
    assert sink.texts == [ascii(odd)]


def test_program_is_found_in_the_commands_own_path(launcher: ProcessLauncher, tmp_path: Path, run: Run) -> None:
    """A bare name is looked up in the PATH that the child will have."""
    program = tmp_path / "my-engine"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    order = command("my-engine", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert run(finished(launcher, order)).code == 7


async def refused(launcher: ProcessLauncher, store: MemoryFdStore, order: Command) -> BackendFailed:
    """The error of a start; nothing may be left of it."""
    with pytest.raises(BackendFailed) as caught:
        await launcher.spawn(order)
    assert caught.value.preflight
    assert not store.kept
    assert await launcher.close() == ()
    return caught.value


def test_missing_program_is_named(launcher: ProcessLauncher, store: MemoryFdStore, run: Run) -> None:
    """A path that leads nowhere."""
    error = run(refused(launcher, store, command("/nonexistent/engine")))
    assert error.text == (
        'cannot start "/nonexistent/engine" for "tiny": there is no such file; install it, or correct the path'
    )


def test_program_missing_in_path_is_named_with_the_path(
    launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A bare name that no directory has."""
    error = run(refused(launcher, store, command("no-such-engine", PATH="/usr/bin:/bin")))
    assert str(error) == 'cannot start "no-such-engine" for "tiny": there is no such program in /usr/bin:/bin'


def test_missing_directory_is_named(launcher: ProcessLauncher, store: MemoryFdStore, run: Run) -> None:
    """The program is there, the directory to run it in is not."""
    error = run(refused(launcher, store, shell("true", directory="/nonexistent")))
    assert str(error) == 'cannot start "/bin/sh" for "tiny": its directory "/nonexistent" is not there'


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"#!/bin/sh\n", 0o644, "it is not executable for user"),
        (b"#!/nonexistent/python\n", 0o755, 'its interpreter "/nonexistent/python" cannot be executed'),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 11 + (183).to_bytes(2, "little") + b"\0" * 100, 0o755, "built for aarch64"),
        (b"\x00\x01\x02\x03" * 10, 0o755, "neither a program for this machine nor a script"),
    ],
    ids=["not-executable", "no-interpreter", "wrong-machine", "garbage"],
)
def test_program_that_cannot_run_is_explained(
    launcher: ProcessLauncher,
    store: MemoryFdStore,
    tmp_path: Path,
    run: Run,
    content: bytes,
    mode: int,
    said: str,
) -> None:
    """The reason, not only "exec failed"."""
    if said.endswith("aarch64") and os.uname().machine == "aarch64":
        pytest.skip("this machine is an aarch64")
    program = tmp_path / "engine"
    program.write_bytes(content)
    program.chmod(mode)
    error = run(refused(launcher, store, command(str(program))))
    assert said in str(error) and str(program) in str(error) and error.hint


def test_program_of_another_distribution_is_explained(
    launcher: ProcessLauncher, store: MemoryFdStore, tmp_path: Path, run: Run
) -> None:
    """The kernel says "not found" of a program that is there, when it means the program's loader."""
    true = Path("/bin/true").read_bytes()
    assert b"/ld-linux" in true[:4096]
    program = tmp_path / "engine"
    program.write_bytes(true.replace(b"/ld-linux", b"/ld-alien", 1))
    program.chmod(0o755)
    error = run(refused(launcher, store, command(str(program))))
    assert "/ld-alien" in str(error) and str(error).endswith("is not there")


def test_arguments_that_are_too_long_are_refused(launcher: ProcessLauncher, store: MemoryFdStore, run: Run) -> None:
    """The kernel's limit, with a hint that has its number."""
    error = run(refused(launcher, store, command("/bin/true", "x" * 200_000)))
    assert "Argument list too long" in str(error) and "128 KiB" in error.hint


def test_too_few_descriptors_are_refused_and_leave_nothing(
    launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A daemon at its limit of open files says so and goes on, wherever in a start the limit is hit."""

    async def scene(spare: int) -> BackendFailed | None:
        free = os.dup(0)
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
        try:
            child = await launcher.spawn(command("sleep", "1000"))
        except BackendFailed as error:
            return error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await child.kill()
        return None

    errors = [run(scene(spare)) for spare in range(30)]
    assert errors[0] is not None and errors[-1] is None
    for error in errors:
        if error is not None:
            assert "Too many open files" in str(error) and "LimitNOFILE" in error.hint and error.preflight
    assert not store.kept


@pytest.mark.parametrize("argv", [(), ("",), ("-x",)])
def test_command_without_a_program_is_refused(
    launcher: ProcessLauncher, store: MemoryFdStore, run: Run, argv: tuple[str, ...]
) -> None:
    """An empty command is a mistake of the configuration."""
    run(refused(launcher, store, command(*argv)))


def test_unit_that_runs_is_not_started_twice(launcher: ProcessLauncher, run: Run) -> None:
    """Names of starts are unique; the first one is not disturbed."""

    async def scene() -> None:
        child = await launcher.spawn(command("sleep", "1000"))
        with pytest.raises(BackendFailed, match="running already"):
            await launcher.spawn(command("true"))
        assert is_running(child.pid)
        await child.kill()

    run(scene())


def test_canceled_start_leaves_nothing(launcher: ProcessLauncher, store: MemoryFdStore, run: Run) -> None:
    """Wherever the cancellation hits, no process, no descriptor and no cgroup stays (the fixtures look)."""

    async def scene() -> None:
        for turns in range(12):
            starting = asyncio.ensure_future(launcher.spawn(command("sleep", "1000")))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            try:
                child = await starting
            except asyncio.CancelledError:
                continue
            await child.kill()
        assert await launcher.close() == ()

    run(scene())
    assert not store.kept


def test_many_starts_leak_no_descriptor(launcher: ProcessLauncher, run: Run) -> None:
    """200 starts and ends: as many descriptors as before."""

    async def scene() -> tuple[int, int]:
        await (await launcher.spawn(command("true"))).wait()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            child = await launcher.spawn(command("true", unit=f"tiny-{number}", lease=number % 2 == 0))
            assert (await child.wait()).code == 0
        return before, len(os.listdir("/proc/self/fd"))

    before, after = run(scene())
    assert after == before


def test_flood_delays_nobody_and_fills_nothing(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """100 MB at full speed: the loop goes on to its next turn soon, the memory stays flat, the child is not held up."""
    line = "x" * 70

    async def scene() -> tuple[float, float, Exit]:
        began_s = time.monotonic()
        child = await launcher.spawn(shell(f"yes {line} | head -c 100000000; echo; echo all of it"))
        ended = asyncio.ensure_future(child.wait())
        worst = 0.0
        while not ended.done():
            # What the loop works in one turn is what a timer is late by: here two, without a wait for a processor.
            worked_s = time.thread_time()
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - worked_s)
        return worst, time.monotonic() - began_s, await ended

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worst, lasted_s, ended = run(scene(), 600.0)
    assert ended.code == 0 and ended.tail[-1] == "all of it"
    assert worst < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
    dropped = sum(int(text.split()[0]) for text in sink.texts if " dropped: " in text)
    passed = sum(" dropped: " not in text for text in sink.texts)
    # Two more than the child's whole lines: the one that head cut, and the last word.
    assert dropped + passed == 100_000_000 // 71 + 2
    assert passed < 1000 + 200 * (lasted_s + 1)


def test_stdin_is_a_lease(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Nothing comes from it but its end, when the lease is closed; a second time that does nothing."""

    async def scene() -> Exit:
        child = await launcher.spawn(
            shell('echo ready; while read -r line; do echo "got $line"; done; echo end; exit 9', lease=True)
        )
        await sink.until(lambda text: text == "ready")
        child.close_lease()
        child.close_lease()
        return await child.wait()

    assert run(scene()).code == 9
    assert sink.texts == ["ready", "end"]


def test_child_dies_with_a_daemon_that_keeps_nothing(tmp_path: Path, run: Run) -> None:
    """Without a lasting store, kill -9 of the daemon ends the engine: the kernel sees to it."""
    daemon = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from process_parts import Lines, MemoryFdStore, command
from gpud.processes.launcher import ProcessLauncher

async def main():
    store = MemoryFdStore(lasting=False)
    launcher = ProcessLauncher(runtime_dir=Path({str(tmp_path)!r}), fd_store=store, sink=Lines(), cgroup=None)
    child = await launcher.spawn(command("sleep", "1000"))
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""

    async def scene() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", daemon, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        pid = int(await asyncio.wait_for(process.stdout.readline(), BOUND_S))
        pidfd = os.pidfd_open(pid)
        try:
            assert is_running(pid)
            process.kill()
            await process.wait()
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, ended.set)
            await asyncio.wait_for(ended.wait(), BOUND_S)
            asyncio.get_running_loop().remove_reader(pidfd)
        finally:
            os.close(pidfd)

    run(scene())


def test_pids_are_the_child_and_what_it_forked(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Also a descendant that left the session."""

    async def scene() -> None:
        child = await launcher.spawn(shell("setsid sleep 1000 & echo $!; wait"))
        forked = int(await sink.until(str.isdecimal))
        assert child.pids() == {child.pid, forked}
        ended = await child.stop(PATIENT)
        assert ended.code == -signal.SIGTERM
        assert child.pids() == frozenset()
        assert not is_running(forked)

    run(scene())
