"""Downloads on the bus: whoever makes one tells of it, everybody sees it, and it ends with its connection."""

import asyncio
from typing import Any

import pytest

from gpud.core.facts import JobKind
from gpud.dbus.limits import CallerLimits

from .fake_engine import FakeEngine
from .peers import NAME, Polkit, peer, serving
from .private_bus import NOBODY, PrivateBus
from .test_holds import ObservedEngine

STANDARD = "org.freedesktop.DBus.Error."
OWN = f"{NAME}.Error."
WHAT = "hf:org/repo/model-q4_k_m.gguf"


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, (_, value) in record.items()}


def test_everybody_sees_how_far_it_is(run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str) -> None:
    """It is among the jobs of Status and in the property Downloads, with its bytes, and JobRemoved tells of its end."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            peer(private_bus.address) as other,
            other.signals() as heard,
        ):
            job = await client.call("BeginDownload", "sta{sv}", WHAT, 1000, {"done-bytes": ("t", 100)})
            await client.call("UpdateDownload", "utt", job, 250, 1000)
            (shown,) = map(plain, (await other.call("Status"))["Jobs"][1])
            expected = {"Id": job, "Kind": "download", "Model": WHAT, "Bytes": 250, "TotalBytes": 1000}
            assert expected.items() <= shown.items()
            assert list(map(plain, await other.get("Downloads"))) == [shown]
            await client.call("EndDownload", "uss", job, "done", "downloaded 1000 bytes")
            assert await heard.next("JobRemoved") == ("JobRemoved", (job, WHAT, "done", "downloaded 1000 bytes"))
            assert await other.get("Downloads") == []

    run(scenario())


def test_a_length_that_nobody_knows_is_zero(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """0 on the bus is None inside, both ways."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            job = await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
            await client.call("UpdateDownload", "utt", job, 250, 0)
            assert engine.jobs[job].total_bytes is None
            (shown,) = map(plain, await client.get("Downloads"))
            assert shown["TotalBytes"] == 0 and "Progress" not in shown

    run(scenario())


def test_it_ends_with_the_connection(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Nothing is left of one whose process has gone, and nobody is watched any longer."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine, library=library) as service:
            async with peer(private_bus.address) as client:
                await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
                assert service.watched == 1
            await engine.until(lambda: not engine.jobs)
            assert service.watched == 0

    run(scenario())


def test_one_that_has_ended_is_not_watched(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The bus is asked about nobody who has nothing under way."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine) as service, peer(private_bus.address) as client:
            first, second = [await client.call("BeginDownload", "sta{sv}", WHAT, 0, {}) for _ in range(2)]
            await client.call("EndDownload", "uss", first, "failed", "no space")
            assert service.watched == 1
            await client.call("EndDownload", "uss", second, "done", "")
            assert service.watched == 0

    run(scenario())


def test_a_canceled_download_is_over_for_its_process(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Another connection of the same user cancels it; the process hears JobRemoved, and is refused from then on."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as client,
            peer(private_bus.address) as other,
            client.signals() as heard,
        ):
            job = await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
            await other.call("CancelJob", "u", job)
            _, (ended, _, result, _) = await heard.next("JobRemoved")
            assert (ended, result) == (job, "canceled")
            refused = await client.refused("UpdateDownload", "utt", job, 5, 0)
            assert refused.name == f"{OWN}NoSuchJob"

    run(scenario())


def test_another_connection_cannot_speak_for_it(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Also not one of the same user."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as client,
            peer(private_bus.address) as other,
        ):
            job = await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
            for call in (("UpdateDownload", "utt", job, 5, 0), ("EndDownload", "uss", job, "done", "")):
                assert (await other.refused(*call)).name == f"{OWN}NoSuchJob"
            assert engine.jobs[job].done_bytes == 0

    run(scenario())


@pytest.mark.parametrize(
    ("call", "name", "says"),
    [
        (("BeginDownload", "sta{sv}", "", 0, {}), "InvalidArgs", "what is empty"),
        (("BeginDownload", "sta{sv}", "x" * 129, 0, {}), "InvalidArgs", "129 characters, the limit is 128"),
        (("BeginDownload", "sta{sv}", WHAT, 0, {"speed": ("t", 1)}), f"{OWN}InvalidOption", '"done-bytes"'),
        (("EndDownload", "uss", 1, "stolen", ""), "InvalidArgs", 'allowed are "done", "failed", "canceled"'),
        (("EndDownload", "uss", 1, "timeout", ""), "InvalidArgs", "cannot end as 'timeout'"),
        (("UpdateDownload", "utt", 77, 1, 1), f"{OWN}NoSuchJob", "no download 77"),
    ],
)
def test_what_means_nothing_is_refused(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, call: Any, name: str, says: str
) -> None:
    """Each with what is allowed; nothing is shown."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            refused = await client.refused(*call)
            assert refused.name == (name if "." in name else STANDARD + name)
            assert says in refused.text
            assert engine.jobs == {}

    run(scenario())


def test_downloads_are_counted_apart_from_loads(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """So many of one user; a user whose limit they fill can still load."""

    async def scenario() -> None:
        limits = CallerLimits(jobs=2)
        async with serving(private_bus.address, engine, limits=limits), peer(private_bus.address) as client:
            for _ in range(2):
                await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
            refused = await client.refused("BeginDownload", "sta{sv}", WHAT, 0, {})
            assert refused.name == f"{STANDARD}LimitsExceeded"
            assert "has 2 downloads under way, the limit is 2" in refused.text
            await client.call("Load", "s", "tiny")
            assert sum(job.kind is JobKind.LOAD for job in engine.jobs.values()) == 1

    run(scenario())


def test_polkit_decides_as_for_a_load(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """A stranger's download is shown where polkit allows loads, with what it is in the dialog's words."""

    async def scenario() -> None:
        polkit = Polkit()
        polkit.answer = (False, False)
        async with (
            serving(private_bus.address, engine),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            refused = await client.refused("BeginDownload", "sta{sv}", WHAT, 0, {})
            assert refused.name == f"{STANDARD}AccessDenied"
            question = await asyncio.wait_for(polkit.asked.get(), 50)
            assert question.body[1] == f"{NAME}.load"
            assert question.body[2]["what"] == WHAT
            assert engine.jobs == {}
            polkit.answer = (True, False)
            await client.call("BeginDownload", "sta{sv}", WHAT, 0, {})
            assert len(engine.jobs) == 1

    run(scenario())
