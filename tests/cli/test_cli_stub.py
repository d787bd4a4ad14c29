"""gpudctl against a daemon that refuses, is silent, is early, or goes away: what a healthy one rarely does."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cli_place import PATIENCE_S, Place, StubDaemon, error, model, nothing, private_bus, reply, shows
from dbus_next.signature import Variant

FREEDESKTOP = "org.freedesktop.DBus.Error"
OWN = "org.kernelcore.GpuD.Error"

INTERACTIVE = 4
NO_AUTOSTART = 2


def with_stub(place: Place, work: Callable[[StubDaemon], Awaitable[None]]) -> None:
    async def main() -> None:
        stub = await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"])
        try:
            await work(stub)
        finally:
            await stub.leave()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        (f"{FREEDESKTOP}.AccessDenied", "uid 1000 may not load; ask an administrator", 4),
        (f"{FREEDESKTOP}.InteractiveAuthorizationRequired", "a password is needed", 4),
        (f"{FREEDESKTOP}.LimitsExceeded", "uid 1000 has 16 jobs, the limit is 16; wait", 4),
        (f"{FREEDESKTOP}.InvalidArgs", "the model's name is empty", 2),
        (f"{OWN}.Busy", '"tiny" is held by sam; ask', 4),
        (f"{OWN}.BudgetExceeded", "needs 5.1 GiB, 3.2 GiB are free", 4),
        (f"{OWN}.QueueFull", "10 wait for memory already, which is the limit", 4),
        (f"{OWN}.WaitedTooLong", "its turn did not come within 300 s", 4),
        (f"{OWN}.Yielded", "the GPUs are given away", 4),
        (f"{OWN}.GpuTaken", "a game holds 5.0 GiB", 4),
        (f"{OWN}.InvalidOption", "there is no option 'x'", 2),
        (f"{OWN}.NoSuchModel", 'there is no model "tiny"', 1),
        (f"{OWN}.GpuUnavailable", "the driver does not answer", 1),
        (f"{OWN}.ShuttingDown", "gpud is shutting down", 1),
        (f"{FREEDESKTOP}.Failed", "internal error in Load", 1),
        ("org.example.Unheard", "what is this", 1),
    ],
)
def test_errors_of_the_daemon_become_statuses(place: Place, name: str, text: str, status: int) -> None:
    """One line with the daemon's own words, and the status of the table in gpudctl(1)."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Load"] = error(name, text)
        assert await stub.gpudctl(place, "load", "tiny") == (status, "", f"gpudctl: {text}\n")

    with_stub(place, work)


def test_an_error_as_json(place: Place) -> None:
    """The object says which error it is; the sentence stays on stderr."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Load"] = error(f"{OWN}.Busy", "held by sam")
        status, out, err = await stub.gpudctl(place, "load", "--json", "tiny")
        assert status == 4
        assert re.sub(r"\s+", " ", out) == '{ "error": { "code": "busy", "message": "held by sam", "hint": "" } } '
        assert err == "gpudctl: held by sam\n"

    with_stub(place, work)


def test_one_refused_model_does_not_keep_the_others_from_loading(place: Place) -> None:
    """The worst status wins, and the loads that were begun are waited for."""

    async def work(stub: StubDaemon) -> None:
        def load(message: Any) -> list[Any]:
            if message.body[0] == "held":
                return error(f"{OWN}.Busy", "held by sam")(message)
            return [*reply("u", 5)(message), stub.signal("JobRemoved", "usss", 5, message.body[0], "done", "")]

        stub.answers |= {"Load": load, **shows(model("tiny", State="ready"))}
        status, out, err = await stub.gpudctl(place, "load", "held", "tiny")
        assert (status, out, err) == (4, 'loaded "tiny"\n', "gpudctl: held by sam\n")

    with_stub(place, work)


def test_a_job_that_ends_at_once_is_not_missed(place: Place) -> None:
    """The signal comes right behind the reply, in the same breath."""

    async def work(stub: StubDaemon) -> None:
        def load(message: Any) -> list[Any]:
            end = stub.signal("JobRemoved", "usss", 9, "tiny", "done", "")
            return [*reply("u", 9)(message), end]

        stub.answers |= {"Load": load, **shows(model("tiny", LoadUSec=1_500_000))}
        assert await stub.gpudctl(place, "load", "tiny") == (0, 'loaded "tiny": in 1.5 s\n', "")

    with_stub(place, work)


def test_jobs_of_others_are_not_ours(place: Place) -> None:
    """Only the end of the job that the command has begun ends the waiting."""

    async def work(stub: StubDaemon) -> None:
        def load(message: Any) -> list[Any]:
            others = stub.signal("JobRemoved", "usss", 8, "tiny", "failed", "not ours")
            return [*reply("u", 9)(message), others, stub.signal("JobRemoved", "usss", 9, "tiny", "done", "")]

        stub.answers |= {"Load": load, **shows()}
        assert await stub.gpudctl(place, "load", "tiny") == (0, 'loaded "tiny"\n', "")

    with_stub(place, work)


@pytest.mark.parametrize(
    ("result", "message", "told"),
    [
        ("failed", "", 'loading "tiny" failed; "gpudctl log tiny" shows its messages'),
        ("failed", 'cannot load "tiny": no file; put it there', 'cannot load "tiny": no file; put it there'),
        ("canceled", "canceled", 'loading "tiny" was canceled'),
        ("superseded", "unloaded by sam", 'loading "tiny" was superseded by another request: unloaded by sam'),
        ("timeout", "after 300 s", 'loading "tiny" took too long: after 300 s; "gpudctl log tiny" shows its messages'),
        ("sunk", "", 'loading "tiny" sunk; "gpudctl log tiny" shows its messages'),
    ],
)
def test_how_a_job_ended_is_a_sentence(place: Place, result: str, message: str, told: str) -> None:
    """Every result of the interface has words, also one that is invented later."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Load"] = lambda call: [
            *reply("u", 1)(call),
            stub.signal("JobRemoved", "usss", 1, "tiny", result, message),
        ]
        stub.answers |= {"Job": reply("a{sv}", {"ErrorHint": Variant("s", message.partition("; ")[2])}), **shows()}
        assert await stub.gpudctl(place, "load", "tiny") == (1, "", f"gpudctl: {told}\n")

    with_stub(place, work)


def test_progress_comes_as_lines(place: Place) -> None:
    """A line for each state and each quarter of the way, and none twice."""

    async def work(stub: StubDaemon) -> None:
        def load(message: Any) -> list[Any]:
            from dbus_next import Message, Variant

            def progress(fraction: float) -> Any:
                models = Variant("aa{sv}", [model("tiny", State="loading", Progress=fraction)])
                body = ["org.kernelcore.GpuD", {"Models": models}, []]
                interface = "org.freedesktop.DBus.Properties"
                return Message.new_signal("/org/kernelcore/GpuD", interface, "PropertiesChanged", "sa{sv}as", body)

            return [
                *reply("u", 1)(message),
                stub.signal("ModelStateChanged", "sss", "tiny", "queued", "budget"),
                stub.signal("ModelStateChanged", "sss", "tiny", "loading", "user"),
                *(progress(fraction) for fraction in (0.1, 0.3, 0.4, 0.8)),
                stub.signal("JobRemoved", "usss", 1, "tiny", "done", ""),
            ]

        stub.answers |= {"Load": load, **shows()}
        _, _, err = await stub.gpudctl(place, "load", "tiny")
        assert err.splitlines() == [
            "tiny: waiting for memory",
            "tiny: loading",
            "tiny: loading, 25 %",
            "tiny: loading, 75 %",
        ]

    with_stub(place, work)


@pytest.mark.parametrize("words", [("load", "tiny"), ("wait", "tiny"), ("unload", "tiny")])
def test_a_daemon_that_goes_away_ends_the_waiting(place: Place, words: tuple[str, ...]) -> None:
    """Status 3 and a sentence, in place of waiting for ever."""

    async def work(stub: StubDaemon) -> None:
        last = {"load": "Load", "wait": "Overview", "unload": "Unload"}[words[0]]
        loading = shows(model("tiny", State="loading"))
        stub.answers |= {"Load": reply("u", 1), "Unload": reply("u", 1), **loading}
        command = asyncio.ensure_future(stub.gpudctl(place, *words))
        await stub.until(last)
        await stub.leave()
        status, out, err = await command
        assert (status, out) == (3, "")
        assert err.startswith("gpudctl: gpud ended before it answered; ")

    async def main() -> None:
        await work(await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"]))

    asyncio.run(main())


def test_a_daemon_that_dies_before_it_answers(place: Place) -> None:
    """The bus answers in its place, and the command ends with 3."""

    async def main() -> None:
        stub = await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"])
        stub.answers["Status"] = nothing
        command = asyncio.ensure_future(stub.gpudctl(place, "status"))
        await stub.until("Status")
        await stub.leave()
        status, _, err = await command
        assert status == 3
        assert "gpud ended before it answered" in err

    asyncio.run(main())


def test_unload_of_everything_by_an_old_and_a_new_word(place: Place) -> None:
    """No name and --all are the same call; --force takes the options."""

    async def work(stub: StubDaemon) -> None:
        def unload(message: Any) -> list[Any]:
            return [*reply("u", 3)(message), stub.signal("JobRemoved", "usss", 3, "", "done", "nothing loaded")]

        stub.answers |= {"UnloadAll": unload, "UnloadWithOptions": unload, **shows()}
        for words in (("unload",), ("unload", "--all"), ("unload", "--force")):
            assert await stub.gpudctl(place, *words) == (0, "nothing loaded\n", "")
        assert [name for name in stub.names() if name.startswith("Unload")] == [
            "UnloadAll",
            "UnloadAll",
            "UnloadWithOptions",
        ]

    with_stub(place, work)


def test_the_options_of_a_load_reach_the_bus(place: Place) -> None:
    """Seconds become microseconds, --no-evict becomes false; without options the plain call is used."""

    async def work(stub: StubDaemon) -> None:
        stub.answers |= {"Load": reply("u", 1), "LoadWithOptions": reply("u", 2)}
        words = ("load", "--no-wait", "--context", "8192", "--idle-timeout", "10m", "--no-evict", "tiny")
        engines = ("--engine", "vllm", "--engine", "llama_server")
        await stub.gpudctl(place, *words, "--priority", "high", "--wait", "0", *engines)
        await stub.gpudctl(place, "load", "--no-wait", "tiny")
        (with_options, plain) = (body for name, body, _ in stub.calls if name.startswith("Load"))
        options = {key: (value.signature, value.value) for key, value in with_options[1].items()}
        assert options == {
            "context-size": ("u", 8192),
            "idle-timeout-usec": ("t", 600_000_000),
            "evict": ("b", False),
            "priority": ("s", "high"),
            "wait-usec": ("t", 0),
            "engines": ("as", ["vllm", "llama_server"]),
        }
        assert plain == ["tiny"]

    with_stub(place, work)


def test_nobody_is_asked_for_a_password_without_a_terminal(place: Place) -> None:
    """In scripts polkit must refuse rather than put up a dialog; and no call starts a daemon behind our back."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Load"] = reply("u", 1)
        await stub.gpudctl(place, "load", "--no-wait", "tiny")
        assert [flags & (INTERACTIVE | NO_AUTOSTART) for _, _, flags in stub.calls] == [NO_AUTOSTART]

    with_stub(place, work)


def test_on_a_terminal_polkit_may_ask(place: Place) -> None:
    """The flag of D-Bus that permits the question is set for what needs permission, not for looking."""

    async def work(stub: StubDaemon) -> None:
        import os
        import pty

        from cli_place import GPUDCTL

        stub.answers |= {"Load": reply("u", 1), **shows()}
        ours, theirs = pty.openpty()
        try:
            for words in (("load", "--no-wait", "tiny"), ("models",)):
                process = await asyncio.create_subprocess_exec(
                    *GPUDCTL, *words, env=place.environment, stdin=theirs, stdout=theirs, stderr=theirs
                )
                assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        finally:
            os.close(ours)
            os.close(theirs)
        assert [(name, flags & INTERACTIVE) for name, _, flags in stub.calls] == [
            ("Load", INTERACTIVE),
            ("ListModels", 0),
        ]

    with_stub(place, work)


# Which bus -----------------------------------------------------------------------------------------------------------


def test_status_does_not_start_the_daemon(place: Place, tmp_path: Path) -> None:
    """Looking has no consequences: status 3, and how to start it; load lets the bus start it."""
    proof = tmp_path / "started"
    service = tmp_path / "session" / "services" / "org.kernelcore.GpuD.service"
    service.write_text(f"[D-BUS Service]\nName=org.kernelcore.GpuD\nExec=/bin/mkdir {proof} /proc/cannot\n")
    with private_bus(tmp_path / "session2") as address:
        place.environment["DBUS_SESSION_BUS_ADDRESS"] = address
        (tmp_path / "session2" / "services" / service.name).write_text(service.read_text())
        for words in (("status",), ("models",), ("unload",), ("wait", "tiny"), ("version", "--daemon"), ("reload",)):
            done = place.gpudctl("--user", *words)
            assert (done.returncode, done.stdout) == (3, "")
            assert done.stderr.startswith("gpudctl: gpud does not run on the session bus; start it with ")
        assert not proof.exists()
        done = place.gpudctl("--user", "load", "tiny")
        assert done.returncode == 3
        assert "the bus could not start it" in done.stderr
        assert proof.exists()


def test_the_system_bus_goes_first(place: Place, tmp_path: Path) -> None:
    """Without an option: the machine's gpud where it runs, else the session's; options and GPUD_BUS choose."""

    async def work(session: StubDaemon, system: StubDaemon) -> None:
        for stub, name in ((session, "mine"), (system, "machine")):
            stub.answers["ListModels"] = reply("aa{sv}", [model(name)])

        async def seen(*words: str, **more: str) -> str:
            there = Place(place.directory, place.environment | more)
            return (await session.gpudctl(there, *words, "models"))[1].strip()

        assert await seen() == "machine"
        assert await seen("--user") == "mine"
        assert await seen(GPUD_BUS="user") == "mine"
        assert await seen("--system", GPUD_BUS="user") == "machine"
        await system.leave()
        assert await seen() == "mine"
        assert await seen("--system") == ""

    async def main() -> None:
        system = await StubDaemon.on(place.environment["DBUS_SYSTEM_BUS_ADDRESS"])
        session = await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"])
        try:
            await work(session, system)
        finally:
            await session.leave()

    with private_bus(tmp_path / "system") as address:
        place.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
        asyncio.run(main())


def test_a_nonsensical_bus_is_a_wrong_command_line(place: Place) -> None:
    """GPUD_BUS=maybe is a mistake, and said to be one."""
    done = place.gpudctl("status", GPUD_BUS="maybe")
    assert (done.returncode, done.stderr) == (
        2,
        'gpudctl: GPUD_BUS is "maybe"; it can be user, system or auto; correct or unset it\n',
    )


def test_a_bus_that_is_not_there(place: Place) -> None:
    """The reason is in the line: which bus, and why not."""
    done = place.gpudctl("--system", "status")
    assert done.returncode == 3
    assert "the system bus cannot be reached (No such file or directory)" in done.stderr
    done = place.gpudctl("--user", "status", DBUS_SESSION_BUS_ADDRESS="nonsense:")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


# What is rare --------------------------------------------------------------------------------------------------------


def held(stub: StubDaemon) -> None:
    """The model is held and loaded at once."""
    stub.answers |= {
        "Hold": reply("u", 77),
        "Load": lambda call: [*reply("u", 1)(call), stub.signal("JobRemoved", "usss", 1, "tiny", "done", "")],
    }


def test_a_hold_that_ends_early_is_told(place: Place, tmp_path: Path) -> None:
    """The command goes on, and whoever reads its output learns that the model may go."""

    async def work(stub: StubDaemon) -> None:
        import os

        held(stub)
        os.mkfifo(tmp_path / "on")
        os.mkfifo(tmp_path / "go")
        script = f"echo > {tmp_path / 'on'}; cat {tmp_path / 'go'}; exit 5"
        words = ("run", "--hold", "tiny", "--", "sh", "-c", script)
        command = asyncio.ensure_future(stub.gpudctl(place, *words))
        await asyncio.to_thread((tmp_path / "on").read_text)
        assert stub.calls[0][:2] == ("Hold", ["tiny", "runs sh", "gpudctl run"])
        stub.bus.send(stub.signal("HoldReleased", "us", 76, "not ours"))
        stub.bus.send(stub.signal("HoldReleased", "us", 77, "tiny is no longer configured"))
        await ask(stub, "GetId")  # All of it is with the bus now.
        await stub.leave()
        (tmp_path / "go").write_text("")
        status, _, err = await command
        assert status == 5
        assert err.splitlines() == [
            'gpudctl: "tiny" is no longer held (tiny is no longer configured); the command continues',
            "gpudctl: gpud ended before it answered: nothing is held any longer; the command continues",
        ]

    async def main() -> None:
        await work(await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"]))

    asyncio.run(main())


def test_a_signal_from_somebody_else_is_not_believed(place: Place) -> None:
    """Only the owner of the name can end a job; another client's word is worth nothing."""

    async def main() -> None:
        address = place.environment["DBUS_SESSION_BUS_ADDRESS"]
        stub = await StubDaemon.on(address)
        liar = await StubDaemon.on(address)
        stub.answers |= {"Load": reply("u", 1), **shows()}
        command = asyncio.ensure_future(stub.gpudctl(place, "load", "tiny"))
        await stub.until("Load")
        lie = stub.signal("JobRemoved", "usss", 1, "tiny", "failed", "a lie")
        listening = (await ask(stub, "ListNames"))[0]
        for name in (name for name in listening if name.startswith(":")):
            lie.destination = name
            lie.serial = 0
            await liar.bus.send(lie)
        await ask(liar, "GetId")  # All of it is with the bus now.
        stub.bus.send(stub.signal("JobRemoved", "usss", 1, "tiny", "done", ""))
        assert await command == (0, 'loaded "tiny"\n', "")
        await liar.leave()
        await stub.leave()

    asyncio.run(main())


async def ask(stub: StubDaemon, member: str) -> list[Any]:
    from dbus_next import Message

    bus = "org.freedesktop.DBus"
    answer = await stub.bus.call(Message(destination=bus, path="/org/freedesktop/DBus", interface=bus, member=member))
    assert answer is not None
    return list(answer.body)


def test_waiting_for_a_model_that_was_given_up(place: Place) -> None:
    """It ends with the reason, now rather than never; one that is tried again is waited for."""

    async def work(stub: StubDaemon) -> None:
        failed = model("tiny", State="failed", Error="exited with status 1", ErrorHint="lower its context")
        stub.answers |= shows(failed)
        status, _, err = await stub.gpudctl(place, "wait", "tiny")
        assert (status, err) == (1, 'gpudctl: "tiny" has failed: exited with status 1; lower its context\n')
        again = model("tiny", State="failed", Error="exited with status 1", RetryAtUSec=1)
        stub.answers |= shows(again)
        command = asyncio.ensure_future(stub.gpudctl(place, "wait", "tiny"))
        stub.arrived = asyncio.Queue()
        await stub.until("Overview")
        stub.answers |= shows(model("tiny", State="busy"))
        stub.bus.send(stub.signal("ModelStateChanged", "sss", "other", "failed", "crash"))
        stub.bus.send(stub.signal("ModelStateChanged", "sss", "tiny", "busy", "request"))
        assert await command == (0, '"tiny" is busy\n', "")

    with_stub(place, work)


def test_the_other_library_does_as_well(place: Place) -> None:
    """Where dbus-next does not load, dbus-fast takes its place."""
    import subprocess
    import sys

    pytest.importorskip("dbus_fast")

    async def work(stub: StubDaemon) -> None:
        def load(message: Any) -> list[Any]:
            return [*reply("u", 9)(message), stub.signal("JobRemoved", "usss", 9, "tiny", "done", "")]

        stub.answers |= {"LoadWithOptions": load, **shows(model("tiny", LoadUSec=2_000_000))}
        code = "import sys; sys.modules['dbus_next'] = None; from gpud.cli import main; sys.exit(main(sys.argv[1:]))"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, "load", "--no-evict", "tiny"),
            env=place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert await asyncio.wait_for(process.communicate(), PATIENCE_S) == (b'loaded "tiny": in 2.0 s\n', b"")

    with_stub(place, work)


def test_polkits_agent_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told which process asks, it is waited for until it has registered, and it goes when we do."""
    from gpud.cli import agent

    said = tmp_path / "said"
    program = tmp_path / "pkttyagent"
    # Says how it was called, tells that it is ready by closing the descriptor, and stays.
    program.write_text(f'#!/bin/bash\necho "$@" > {said}\neval "exec $4>&-"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    started = agent.start()
    assert started is not None
    words = said.read_text().split()
    assert (words[0], words[2], words[4]) == ("--process", "--notify-fd", "--fallback")
    agent.stop(started)
    assert started.returncode is not None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert agent.start() is None


# Of very many models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("load tiny", 0, 'loaded "tiny"'),
        ("unload big", 0, "unloaded 1 model"),
        ("restart big", 0, 'restarted "big"'),
        ("switch tiny", 0, 'loaded "tiny"'),
        ("reset broken", 0, 'reset "broken"'),
        ("wait big", 0, '"big" is ready'),
        ("wait --state unloaded tiny", 0, '"tiny" is unloaded'),
        ("wait --state unloaded small", 0, '"tiny" is unloaded'),
        ("status tiny", 0, "tiny\n"),
        ("explain tiny", 0, '"tiny" is unloaded'),
        ("ps", 0, "big"),
        ("vram", 0, "=== VRAM Status ==="),
        ("queue", 0, "nobody waits for memory"),
        ("version --daemon", 0, "gpud 1"),
        ("wait tinny", 1, 'there is no model "tinny"; did you mean "tiny"?'),
        ("switch tinny", 1, 'there is no model "tinny"; did you mean "tiny"?'),
        (
            "wait adapter",
            1,
            '"adapter" is not a model that can be loaded; "gpudctl models info adapter" shows what it is',
        ),
    ],
)
def test_whoever_names_one_model_is_not_sent_all_of_them(place: Place, line: str, status: int, told: str) -> None:
    """Nor is who asks what goes on: those that rest are thousands, and only what there is of the others is sent."""

    async def work(stub: StubDaemon) -> None:
        big = model("big", State="ready", Shares={"host": 1 << 30})
        stub.answers |= shows(model("tiny", Aliases=["small"]), big, model("broken", State="failed"))
        known = {name: {"Id": Variant("s", name)} for name in ("tiny", "adapter")}

        def catalog(message: Any) -> list[Any]:
            (name,) = message.body[0]
            name = {"small": "tiny"}.get(name, name)
            if name not in known:
                return error(f"{OWN}.NoSuchModel", f'there is no model "{name}"; did you mean "tiny"?')(message)
            return reply("aa{sv}", [known[name]])(message)

        numbers = iter(range(1, 100))

        def job(message: Any) -> list[Any]:
            number = next(numbers)
            if message.member == "Unload" and message.body == ["big"]:
                stub.answers |= shows(model("tiny"), model("big"))
                stub.answers["Job"] = reply("a{sv}", {"Unloaded": Variant("a{st}", {"big": 1 << 30})})
            return [
                *reply("u", number)(message),
                stub.signal("JobRemoved", "usss", number, message.body[0], "done", ""),
            ]

        stub.answers |= {"ListCatalog": catalog, "Load": job, "Unload": job, "Explain": reply("aa{sv}", [])}
        code, out, err = await stub.gpudctl(place, *line.split())
        assert (code, told in out + err) == (status, True), out + err
        assert not {"ListModels", "Status"} & set(stub.names())
        assert [] not in [body[0] for name, body, _ in stub.calls if name == "ListCatalog"]

    with_stub(place, work)


def test_what_was_meant_is_told_as_the_daemon_says_it(place: Place) -> None:
    """Nothing is read out of its sentence."""

    async def work(stub: StubDaemon) -> None:
        wrong = error(f"{OWN}.NoSuchModel", 'never heard of it: did you mean "tiny"?')
        stub.answers |= {**shows(model("tiny")), "ListCatalog": wrong}
        status, out, err = await stub.gpudctl(place, "--json", "wait", "tinny")
        said = 'never heard of it: did you mean "tiny"?'
        assert json.loads(out)["error"] == {"code": "no-such-model", "message": said, "hint": ""}
        assert (status, err) == (1, f"gpudctl: {said}\n")

    with_stub(place, work)


CALLED_OFF = "no longer waits and its failures are forgotten"
AWAY = "does not come back by itself"


@pytest.mark.parametrize(
    ("words", "record", "said", "noted"),
    [
        ("unload a", {"StayAway": ["a"]}, f'"a" {AWAY}', ""),
        ("unload", {"StayAway": ["a"]}, f'"a" {AWAY}', ""),
        (
            "unload",
            {"CalledOff": ["a"], "Left": {"b": '"b" is held by sam; ask'}},
            f'"a" {CALLED_OFF}',
            'not unloaded: "b" is held by sam; ask',
        ),
        (
            "unload",
            {"Left": {"b": '"b" is held by sam', "c": '"c" is held by eve'}},
            "",
            'not unloaded: "b" is held by sam; "c" is held by eve',
        ),
        ("unload", {"CalledOff": ["a"], "StayAway": ["b; c"]}, f'"a" {CALLED_OFF}; "b; c" {AWAY}', ""),
        (
            "unload a a",
            {"Unloaded": {"a": 3 << 20, "b": 1 << 20}, "StayAway": ["c"]},
            f'unloaded 2 models, freed 4 MiB; "c" {AWAY}',
            "",
        ),
        ("unload", {"Unloaded": {}}, "nothing loaded", ""),
    ],
)
def test_what_an_unload_did_is_read_from_its_record(
    place: Place, words: str, record: dict[str, Any], said: str, noted: str
) -> None:
    """What is not loaded may still wait, or be about to come back; what somebody holds is another matter. The daemon's
    sentence is for people: nothing is taken from it.
    """
    types = {"Unloaded": "a{st}", "Left": "a{ss}", "CalledOff": "as", "StayAway": "as"}

    async def work(stub: StubDaemon) -> None:
        def unload(call: Any) -> list[Any]:
            name = call.body[0] if call.body else ""
            return [
                *reply("u", 3)(call),
                stub.signal("JobRemoved", "usss", 3, name, "done", f'in other words; "z" {AWAY}'),
            ]

        values = {key: Variant(types[key], value) for key, value in record.items()}
        stub.answers |= {"UnloadAll": unload, "Unload": unload, "Job": reply("a{sv}", values)}
        code, out, err = await stub.gpudctl(place, *words.split())
        assert (code, out.strip(), err.strip().removeprefix("gpudctl: ")) == (0, said, noted)
        data = json.loads((await stub.gpudctl(place, "--json", *words.split()))[1])
        assert (data["called_off"], data["stay_away"]) == (record.get("CalledOff", []), record.get("StayAway", []))
        assert data["unloaded"] == list(record.get("Unloaded", {}))

    with_stub(place, work)


def test_a_job_that_is_known_no_longer_has_ended_all_the_same(place: Place) -> None:
    """So many others have ended since: what is left is the daemon's sentence, which is shown as it is."""

    async def work(stub: StubDaemon) -> None:
        def unload(call: Any) -> list[Any]:
            return [*reply("u", 3)(call), stub.signal("JobRemoved", "usss", 3, "", "done", "unloaded it")]

        stub.answers |= {"UnloadAll": unload, "Job": error(f"{OWN}.NoSuchJob", "there is no job 3")}
        assert await stub.gpudctl(place, "unload") == (0, "unloaded it\n", "")

    with_stub(place, work)
