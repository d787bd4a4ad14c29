"""gpudctl about memory against a daemon that does what a test wants: other makers' GPUs, all that status can show, and
what a healthy daemon does only now and then.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from cli_place import (
    GPUDCTL,
    PATIENCE_S,
    Place,
    StubDaemon,
    claim,
    error,
    gpu,
    model,
    nothing,
    reply,
    shows,
    status,
    waiting,
)
from dbus_next.message import Message
from dbus_next.signature import Variant
from test_cli_stub import with_stub

GIB = 1 << 30
OWN = "org.kernelcore.GpuD.Error"
PROPERTIES = "org.freedesktop.DBus.Properties"


def granted(number: int, descriptor: int) -> Callable[[Message], list[Message]]:
    return lambda call: [Message.new_method_return(call, "uh", [number, 0], unix_fds=[descriptor])]


def devices(*gpus: dict[str, Variant]) -> Variant:
    return Variant("aa{sv}", list(gpus))


def told(**values: Variant) -> Message:
    body = ["org.kernelcore.GpuD", values, []]
    return Message.new_signal("/org/kernelcore/GpuD", PROPERTIES, "PropertiesChanged", "sa{sv}as", body)


# run --vram ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "vendor", "shown"),
    [
        ("GPU-1", "nvidia", "GPU-1 - -"),
        ("GPU-2", "amd", "- GPU-2 -"),
        ("pci-3", "intel", "- - -"),
        ("host", "host", "- - -"),
        ("GPU-that-is-gone", "nvidia", "- - -"),
    ],
)
def test_each_maker_has_its_own_variable(place: Place, device: str, vendor: str, shown: str) -> None:
    """CUDA's or ROCm's, and none for the machine's memory, or a device of which nothing is known."""

    async def work(stub: StubDaemon) -> None:
        ours, theirs = os.pipe()
        there = gpu("host" if vendor == "host" else device, Vendor=Variant("s", vendor))
        here = devices() if device == "GPU-that-is-gone" else devices(there)
        mine = claim(5, Device=Variant("s", device), Granted=Variant("b", True))
        stub.answers |= {"Claim": granted(5, theirs), **shows(Gpus=here, Claims=devices(mine))}
        script = "echo ${CUDA_VISIBLE_DEVICES--} ${ROCR_VISIBLE_DEVICES--} ${HIP_VISIBLE_DEVICES--}"
        done = await stub.gpudctl(place, "run", "--vram", "8GiB", "--", "sh", "-c", script)
        assert done == (0, shown + "\n", "")
        os.close(theirs)
        assert await asyncio.to_thread(os.read, ours, 1) == b"", "no copy of the descriptor is left"
        os.close(ours)

    with_stub(place, work)


def test_the_options_of_a_claim_reach_the_bus(place: Place) -> None:
    """The size in bytes, the wait in microseconds, the command's name, and what others read about it."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Claim"] = error(f"{OWN}.QueueFull", "10 wait already")
        words = ("--vram", "1.5G", "--gpu", "1", "--wait", "10m", "--priority", "low", "--why", "x" * 200)
        done = await stub.gpudctl(place, "run", *words, "--", "/bin/sh", "-c", "exit 3")
        assert done == (4, "", 'gpudctl: 10 wait already; "/bin/sh" was not started\n')
        await stub.gpudctl(place, "run", "--vram", "7", "--", "true")
        (first, second) = (body for name, body, _ in stub.calls if name == "Claim")
        assert first[:3] == [3 << 29, "sh", "x" * 128]
        assert {name: value.value for name, value in first[3].items()} == {
            "gpu": "1",
            "priority": "low",
            "wait-usec": 600_000_000,
        }
        assert second == [7, "true", "runs true", {}]

    with_stub(place, work)


def test_what_it_waits_for_is_told_once_for_each_change(place: Place) -> None:
    """A figure that moves is no change; another place in the queue, or another reason, is."""

    async def work(stub: StubDaemon) -> None:
        process = await asyncio.create_subprocess_exec(
            *(*GPUDCTL, "run", "--vram", "8GiB", "--", "true"),
            env=place.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        await stub.until("Claim")

        def tell(position: int, reason: str) -> Message:
            mine = claim(5, Pid=Variant("u", process.pid))
            others = [waiting(number, Claim=Variant("u", 100 + number)) for number in range(1, position)]
            place = waiting(position, Claim=Variant("u", 5), WaitsFor=Variant("s", reason))
            return told(Claims=devices(mine), Queue=devices(*others, place))

        for position, reason in (
            (2, "3.0 GiB are free"),
            (2, "3.1 GiB are free"),
            (2, '"tiny" is busy'),
            (1, '"tiny" is busy'),
        ):
            stub.bus.send(tell(position, reason))
        lines = [(await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)).decode() for _ in range(3)]
        bound = "in the queue, for 5m at most"
        assert lines == [
            f"gpudctl: waiting for 8.0 GiB: 2 of 2 {bound}; 3.0 GiB are free\n",
            f'gpudctl: waiting for 8.0 GiB: 2 of 2 {bound}; "tiny" is busy\n',
            f'gpudctl: waiting for 8.0 GiB: 1 of 1 {bound}; "tiny" is busy\n',
        ]
        process.terminate()
        await asyncio.wait_for(process.communicate(), PATIENCE_S)

    with_stub(place, work)


def test_its_place_is_asked_for_where_it_was_not_told(place: Place) -> None:
    """The queue is told once a second at most: in place of half a sentence, one call."""

    async def work(stub: StubDaemon) -> None:
        stub.answers["Claim"] = nothing
        command = asyncio.ensure_future(stub.gpudctl(place, "run", "--vram", "8GiB", "--wait", "1h", "--", "true"))
        await stub.until("Claim")
        (asked,) = [message for message in stub.open if message.member == "Claim"]
        (credentials,) = (await ask_bus(stub, "GetConnectionUnixProcessID", asked.sender)).body
        queue = devices(waiting(1, Claim=Variant("u", 5), UntilUSec=Variant("t", 0), WaitsFor=Variant("s", "its turn")))
        stub.answers["ListQueue"] = reply("aa{sv}", queue.value)
        stub.bus.send(told(Claims=devices(claim(5, Pid=Variant("u", credentials)))))
        await stub.until("ListQueue")
        stub.bus.send(Message.new_error(asked, f"{OWN}.WaitedTooLong", "not within 1 h"))
        code, out, err = await command
        assert (code, out) == (4, "")
        assert err.splitlines() == [
            "gpudctl: waiting for 8.0 GiB: 1 of 1 in the queue; its turn",
            'gpudctl: not within 1 h; "true" was not started',
        ]

    with_stub(place, work)


async def ask_bus(stub: StubDaemon, member: str, name: str) -> Message:
    bus = "org.freedesktop.DBus"
    call = Message(
        destination=bus, path="/org/freedesktop/DBus", interface=bus, member=member, signature="s", body=[name]
    )
    answer = await stub.bus.call(call)
    assert answer is not None
    return answer


def test_a_gpud_that_goes_while_it_is_waited_for(place: Place) -> None:
    """Status 3, and the command is not started."""

    async def main() -> None:
        stub = await StubDaemon.on(place.environment["DBUS_SESSION_BUS_ADDRESS"])
        command = asyncio.ensure_future(stub.gpudctl(place, "run", "--vram", "8GiB", "--", "echo", "no"))
        await stub.until("Claim")
        await stub.leave()
        code, out, err = await command
        assert (code, out) == (3, "")
        assert err.startswith("gpudctl: gpud ended before it answered; ")

    asyncio.run(main())


# status --------------------------------------------------------------------------------------------------------------


def test_status_shows_all_there_is_to_know_of_memory(place: Place) -> None:
    """Who gave the GPUs away, who waits and for what, claims, an alert, and what a model was loaded with instead."""
    now = int(time.time() * 1e6)
    yielded = {
        "SinceUSec": Variant("t", now),
        "UntilUSec": Variant("t", now + 7_230_000_000),
        "Why": Variant("s", "a game"),
        "Uid": Variant("u", 1000),
        "Caller": Variant("s", ""),
    }
    big = model("big", State="ready", NeedBytes=6 * GIB, VramBytes=5 * GIB, ContextSize=4096)
    big |= {
        "KvBytes": Variant("t", 512 << 20),
        "Reduced": Variant("s", "a context of 4096"),
        "NeedSource": Variant("s", "probe"),
        "Shares": Variant("a{st}", {"GPU-1": 4 * GIB, "host": 2 * GIB}),
    }
    full = {
        "Models": Variant("aa{sv}", [big]),
        "Yielded": Variant("a{sv}", yielded),
        "Gpus": devices(gpu("GPU-1", Alert=Variant("b", True), VramUsed=Variant("t", 7 * GIB))),
        "Claims": devices(
            claim(4, Device=Variant("s", "GPU-1"), Granted=Variant("b", True), UsedBytes=Variant("t", 6 * GIB)),
            claim(5, Caller=Variant("s", ""), Why=Variant("s", "")),
        ),
        "Queue": devices(
            waiting(1, Claim=Variant("u", 5), Overdue=Variant("b", True), WaitsFor=Variant("s", '"big" is busy')),
            waiting(2, Model=Variant("s", "next"), NeedBytes=Variant("t", 0), Priority=Variant("s", "low")),
        ),
        "Holds": devices(
            {
                "Cookie": Variant("u", 1),
                "Model": Variant("s", ""),
                "What": Variant("s", "load"),
                "Reason": Variant("s", ""),
                "Application": Variant("s", "a game"),
                "Uid": Variant("u", 0),
                "Caller": Variant("s", ""),
                "SinceUSec": Variant("t", 0),
            }
        ),
    }

    async def work(stub: StubDaemon) -> None:
        stub.answers |= dict.fromkeys(("Status", "Overview"), status(**full))
        _, text, _ = await stub.gpudctl(place, "status")
        lines = text.splitlines()
        assert re.fullmatch(r"the GPUs are given away for (2h( \d+s)?|1h 59m) more, by uid 1000: a game", lines[1])
        assert [line.split() for line in lines if line.startswith(("MODEL", "big "))] == [
            ["MODEL", "ENGINE", "STATE", "MEMORY", "CONTEXT", "KV", "UNLOADS", "IN"],
            ["big", "custom", "ready", "5120", "MiB", "4096", "512", "MiB", "never"],
        ]
        assert "big: reduced to a context of 4096" in lines
        assert "  nearly full: 7.0 GiB are used" in lines
        assert any(
            re.fullmatch(
                r'waits 1: claim 5 of trainer, needs 8\.0 GiB, for \S+ \S+, it is its turn: "big" is busy', line
            )
            for line in lines
        )
        assert any(re.fullmatch(r'waits 2: "next", low priority, for \S+ \S+', line) for line in lines)
        by = "by uid 1000 (gpudctl, pid 42): night run"
        assert f"claim 4: trainer, 8.0 GiB on GPU 0, uses 6.0 GiB, {by}" in lines
        assert "claim 5: trainer, 8.0 GiB, waits, by uid 1000" in lines
        assert "loading forbidden by a game" in lines
        _, text, _ = await stub.gpudctl(place, "status", "big")
        facts = dict(re.findall(r"^  (\S+(?: \S+)*)  +(.+)$", text, re.M))
        assert facts["device"] == "GPU 0 4096 MiB, host 2048 MiB"
        assert facts["needs"] == "6144 MiB (by the engine's own count)"
        assert facts["context"] == "4096 tokens, 512 MiB for keys and values"
        assert facts["reduced"] == "a context of 4096"

    with_stub(place, work)


# yield, budget, explain ----------------------------------------------------------------------------------------------


def test_yield_waits_until_the_last_model_has_left_the_gpus(place: Place) -> None:
    """What is in the machine's own memory may stay; a request that still runs is waited for."""

    def loaded(name: str, state: str, device: str) -> dict[str, Any]:
        return model(name, State=state, NeedBytes=GIB) | {"Devices": Variant("as", [device])}

    async def work(stub: StubDaemon) -> None:
        on_host = loaded("host", "ready", "host")
        stub.answers |= {
            **shows(loaded("tiny", "busy", "GPU-1"), on_host, Gpus=devices(gpu("GPU-1"))),
            "Yield": reply(""),
        }
        command = asyncio.ensure_future(stub.gpudctl(place, "yield", "--for", "90s", "--why", "a game"))
        await stub.until("Yield")
        await stub.until("Overview")
        stub.answers |= shows(model("tiny"), on_host)
        stub.bus.send(stub.signal("ModelStateChanged", "sss", "tiny", "unloaded", "user"))
        assert await command == (0, "the GPUs are given away for 1m 30s; unloaded 1 model, freed 1024 MiB\n", "")
        assert [body for name, body, _ in stub.calls if name == "Yield"] == [[90_000_000, "a game"]]

    with_stub(place, work)


def test_yield_that_is_interrupted_has_given_them_away(place: Place) -> None:
    """It says so: nothing is taken back behind anybody's back."""

    async def work(stub: StubDaemon) -> None:
        busy = model("tiny", State="busy") | {"Devices": Variant("as", ["GPU-1"])}
        stub.answers |= {
            **shows(busy, Gpus=devices(gpu("GPU-1"))),
            "Yield": reply(""),
        }
        process = await asyncio.create_subprocess_exec(
            *(*GPUDCTL, "yield"),
            env=place.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await stub.until("Yield")
        await stub.until("Overview")
        process.send_signal(2)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 130
        assert err == b"gpudctl: interrupted: the GPUs are given away, and models are still being unloaded\n"
        assert "Resume" not in stub.names()

    with_stub(place, work)


def offer(need: int, reduced: str = "", **more: Variant) -> dict[str, Variant]:
    record = {
        "NeedBytes": Variant("t", need),
        "HostBytes": Variant("t", 0),
        "KvBytes": Variant("t", 0),
        "Source": Variant("s", "formula"),
        "Reduced": Variant("s", reduced),
        "Engine": Variant("s", ""),
        "Shares": Variant("a{st}", {"": need}),
    }
    return record | more


def considered(verdict: str, *victims: str, device: str = "GPU-1", message: str = "") -> Callable[..., list[Message]]:
    record = {
        "Verdict": Variant("s", verdict),
        "Device": Variant("s", device),
        "Victims": Variant("as", list(victims)),
        "Message": Variant("s", message),
    }
    return reply("a{sv}", record)


@pytest.mark.parametrize(
    ("answer", "status_code", "line"),
    [
        (considered("fits"), 0, "fits now"),
        (considered("evicts", "big"), 0, 'fits when "big" is unloaded'),
        (considered("evicts", "big", "old"), 0, 'fits when "big", "old" are unloaded'),
        (considered("waits", message='"big" is busy'), 0, 'fits, but has to wait: "big" is busy'),
        (considered("refused", device="", message="it is too large"), 4, "does not fit: it is too large"),
    ],
)
def test_each_verdict_has_its_words(place: Place, answer: Any, status_code: int, line: str) -> None:
    """And its status; the options of the question reach the daemon."""

    async def work(stub: StubDaemon) -> None:
        quote = {
            "NeedBytes": Variant("t", 5 * GIB),
            "HostBytes": Variant("t", 0),
            "Source": Variant("s", "formula"),
            "LoadUSec": Variant("t", 0),
            "Offers": devices(offer(5 * GIB)),
            "Less": devices(),
        }
        room = gpu("GPU-1", Budget=Variant("t", 8 * GIB), Available=Variant("t", GIB))
        stub.answers |= {
            **shows(model("tiny"), Gpus=devices(room)),
            "Quote": reply("a{sv}", quote),
            "Consider": answer,
        }
        code, text, _ = await stub.gpudctl(place, "budget", "tiny", "--ctx", "512", "--layers", "7")
        assert code == status_code
        assert text.splitlines()[:3] == [
            "tiny, with a context of 512 and 7 layers on the GPU: needs 5.0 GiB on a GPU, as calculated",
            "  GPU 0 (Test GPU 0): budget 8.0 GiB, 1.0 GiB available",
            line,
        ]
        ((name, options),) = [body for member, body, _ in stub.calls if member == "Quote"]
        assert (name, {key: value.value for key, value in options.items()}) == (
            "tiny",
            {"context-size": 512, "layers": 7},
        )

    with_stub(place, work)


@pytest.mark.parametrize(
    ("need", "status_code", "line"),
    [
        (5 * GIB, 0, "fits, unless other programs hold the GPU, which is asleep"),
        (9 * GIB, 4, "does not fit"),
    ],
)
def test_a_gpu_that_sleeps_is_not_woken_for_a_question(place: Place, need: int, status_code: int, line: str) -> None:
    """Its budget answers, in place of a scheduler that cannot know what is free of it."""

    async def work(stub: StubDaemon) -> None:
        room = gpu("GPU-1", Budget=Variant("t", 8 * GIB), Asleep=Variant("b", True))
        stub.answers |= {
            **shows(model("tiny"), Gpus=devices(room)),
            "Quote": reply("a{sv}", {"Offers": devices(offer(need)), "Less": devices()}),
            "Consider": considered("refused", device="", message="does not tell its free memory"),
        }
        code, text, _ = await stub.gpudctl(place, "budget", "tiny")
        assert code == status_code
        assert text.splitlines()[1:3] == ["  GPU 0 (Test GPU 0): budget 8.0 GiB, asleep", line]

    with_stub(place, work)


def test_a_part_that_is_too_large_for_the_machines_memory(place: Place) -> None:
    """The GPU would hold its share, the machine not the rest."""

    async def work(stub: StubDaemon) -> None:
        best = offer(5 * GIB, Shares=Variant("a{st}", {"": 5 * GIB, "host": 9 * GIB}))
        quote = {"Offers": devices(best), "Less": devices()}
        room = gpu("GPU-1", Budget=Variant("t", 8 * GIB), Available=Variant("t", 8 * GIB))
        host = gpu("host", Budget=Variant("t", 4 * GIB), Available=Variant("t", 4 * GIB))
        stub.answers |= {
            **shows(model("tiny"), Gpus=devices(room, host)),
            "Quote": reply("a{sv}", quote),
            "Consider": considered("fits"),
        }
        code, text, _ = await stub.gpudctl(place, "budget", "tiny")
        assert code == 4
        assert "does not fit: its part in the machine's memory is above the budget there, 4.0 GiB\n" in text
        assert "take a smaller model or quantization" in text

    with_stub(place, work)


def test_two_gpus_together_may_hold_what_one_cannot(place: Place) -> None:
    """Each its share, which its budget is compared with; one that is too large for its GPU does not help."""

    def shared(first: int, second: int) -> dict[str, Variant]:
        return offer(first + second, Shares=Variant("a{st}", {"GPU-1": first, "GPU-2": second}))

    async def work(stub: StubDaemon) -> None:
        rooms = [gpu(f"GPU-{one}", one - 1, Budget=Variant("t", 8 * GIB), Available=Variant("t", 0)) for one in (1, 2)]
        stub.answers |= {
            **shows(model("tiny"), Gpus=devices(*rooms)),
            "Consider": considered("refused", device="", message="no"),
        }
        for second, code, line in (
            (5 * GIB, 0, "gpud would load it with its layers split over 2 GPUs, as its configuration allows\n"),
            (9 * GIB, 4, "take a smaller model or quantization\n"),
        ):
            offers = devices(offer(12 * GIB), shared(7 * GIB, second))
            stub.answers["Quote"] = reply("a{sv}", {"Offers": offers, "Less": devices()})
            done, text, _ = await stub.gpudctl(place, "budget", "tiny")
            assert (done, text.endswith(line)) == (code, True), text

    with_stub(place, work)


def test_a_record_is_shown_with_its_detail_and_its_numbers(place: Place) -> None:
    """Sizes as sizes, times in seconds; what is empty is left out."""

    async def work(stub: StubDaemon) -> None:
        record = {
            "AtUSec": Variant("t", 1_700_000_000_000_000),
            "Kind": Variant("s", "evicted"),
            "Level": Variant("s", "warning"),
            "Model": Variant("s", "big"),
            "Message": Variant("s", "made room for tiny"),
            "Detail": Variant("as", ["candidates: big, old"]),
            "Fields": Variant(
                "a{sv}",
                {
                    "need_bytes": Variant("t", 5 * GIB),
                    "waited_s": Variant("d", 1.25),
                    "share": Variant("d", 0.5),
                    "for": Variant("s", "tiny"),
                    "empty": Variant("s", ""),
                },
            ),
        }
        stub.answers |= {**shows(), "Explain": reply("aa{sv}", [record])}
        code, text, _ = await stub.gpudctl(place, "explain", "-n", "7")
        first, *rest = text.splitlines()
        assert (code, first) == (0, "gpud is idle; nothing loaded")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
        assert rest == [
            f"{when}  evicted  big: made room for tiny",
            "    candidates: big, old",
            "    need 5.0 GiB, waited 1.25 s, share 0.5, for tiny",
        ]
        assert [body for name, body, _ in stub.calls if name == "Explain"] == [["", 7]]

    with_stub(place, work)


def test_a_gpud_that_is_too_old_says_so(place: Place) -> None:
    """Nothing is guessed in place of what it does not know."""

    async def work(stub: StubDaemon) -> None:
        unknown = error("org.freedesktop.DBus.Error.UnknownMethod", 'has no method "Claim"')
        stub.answers["Claim"] = unknown
        code, _, err = await stub.gpudctl(place, "run", "--vram", "1G", "--", "true")
        assert (code, err) == (
            1,
            'gpudctl: this gpud is too old for that: has no method "Claim"; update gpud and restart it\n',
        )

    with_stub(place, work)
