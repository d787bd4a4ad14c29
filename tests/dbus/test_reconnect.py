"""The bus dies and comes back; gpud and its models do not care."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from gpud.core.events import Kind, Notice
from gpud.dbus.limits import CallerLimits
from gpud.dbus.service import NAME, BusUnavailable, Service

from .fake_engine import FakeEngine
from .peers import nobody, peer, serving
from .private_bus import PrivateBus
from .test_holds import ObservedEngine, inhibit


class Notices(list[Notice]):
    """What the daemon would write down; a test can wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def append(self, notice: Notice) -> None:
        super().append(notice)
        self._came.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not predicate():
                self._came.clear()
                await self._came.wait()

    def kinds(self) -> list[Kind]:
        return [notice.kind for notice in self]


def test_a_restarted_bus_finds_the_name_owned_again(run: Any, mortal_bus: PrivateBus, library: str) -> None:
    """kill -9 of the bus: holds of those who were on it end, inhibitions by descriptor stay, calls work again."""

    async def scenario() -> None:
        engine, notices = ObservedEngine(), Notices()
        async with serving(mortal_bus.address, engine, library=library, notices=notices) as service:
            async with peer(mortal_bus.address) as client:
                held = await client.call("Hold", "sss", "tiny", "why", "app")
                bus, fd = await asyncio.to_thread(inhibit, mortal_bus.address)
                bus.close()
                mortal_bus.kill()
                await notices.until(lambda: Kind.BUS_LOST in notices.kinds())
                assert held not in engine.holds and len(engine.holds) == 1
                assert not service.connected
                mortal_bus.start()
                await notices.until(lambda: notices.kinds().count(Kind.BUS_OWNED) == 2)
            async with peer(mortal_bus.address) as client:
                assert await client.call("Load", "s", "tiny") == 1
                assert await client.get("LoadedModels") == []
                assert service.watched == 0
            os.close(fd)
            await engine.until(lambda: not engine.holds)
        assert notices.kinds() == [Kind.BUS_OWNED, Kind.BUS_LOST, Kind.BUS_OWNED]

    run(scenario())


def test_a_daemon_that_starts_before_the_bus_is_found_once_it_is_there(run: Any, mortal_bus: PrivateBus) -> None:
    """start() says that there is no bus; run() goes on trying."""

    async def scenario() -> None:
        notices = Notices()
        mortal_bus.kill()
        service = Service(
            FakeEngine(),
            shells=nobody(),
            user_mode=False,
            limits=CallerLimits(),
            version="1",
            address=mortal_bus.address,
            on_bus=notices.append,
        )
        with pytest.raises(BusUnavailable, match="cannot connect to the bus at"):
            await service.start()
        running = asyncio.create_task(service.run())
        mortal_bus.start()
        await notices.until(lambda: Kind.BUS_OWNED in notices.kinds())
        await service.close()
        await running

    run(scenario())


def test_a_name_that_was_taken_meanwhile_is_owned_when_it_is_free_again(run: Any, mortal_bus: PrivateBus) -> None:
    """After a restart of the bus somebody else was quicker: gpud says who, waits in the queue, and polls nothing."""

    async def scenario() -> None:
        notices = Notices()
        service = Service(
            FakeEngine(),
            shells=nobody(),
            user_mode=False,
            limits=CallerLimits(),
            version="1",
            address=mortal_bus.address,
            on_bus=notices.append,
        )
        async with serving(mortal_bus.address, FakeEngine()) as first:
            running = asyncio.create_task(service.run())
            await notices.until(lambda: bool(notices))
            assert notices[0].message.startswith(f"{NAME} already owned by {first.unique_name} (pid ")
        await notices.until(lambda: Kind.BUS_OWNED in notices.kinds())
        async with peer(mortal_bus.address) as client:
            assert await client.get("Version") == "1"
        await service.close()
        await running

    run(scenario())
