"""Units with old names, while gpud itself is on its way; tests/booted has them in systemd."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.parts import Bench

from gpud.core.ports import Stream
from gpud.facades import Facades

BOUND_S = 50


class NoLines:
    """Engines that say nothing."""

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        raise AssertionError(f"{engine} says {text}")


async def no_door() -> None:
    raise AssertionError("llamacpp.service is no door")


async def first_line(path: Path, facades: Facades, bench: Bench) -> str:
    """What whoever stops the unit is told, from the moment on from which facades are served."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        loop.add_reader(fd, readable.set)
        facades.begin(bench.engine)
        await asyncio.wait_for(readable.wait(), BOUND_S)
        return os.read(fd, 4096).decode()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def test_a_unit_that_is_stopped_while_gpud_starts_is_stopped(run: Callable[..., Any], tmp_path: Path) -> None:
    """After the first look at the folder, and before it is watched: its engines are refused, and who waits is told."""

    async def work() -> None:
        async with Bench() as bench:
            facades = Facades(tmp_path, NoLines(), no_door)
            facades.prepare()
            assert facades.refuses("embedded") is None
            os.mkfifo(tmp_path / "llamacpp.bye")
            (tmp_path / "llamacpp.stopped").touch()
            try:
                assert await first_line(tmp_path / "llamacpp.bye", facades, bench) == "nothing was loaded\n"
                assert facades.refuses("embedded") == (
                    '"llamacpp.service" was stopped, and with it the engine "embedded"',
                    "systemctl start llamacpp",
                )
            finally:
                await facades.close()

    run(work())
