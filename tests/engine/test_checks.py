"""Questions about files that may lie on a file system that hangs."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gpud.engine.checks import Checks, Unanswered

Run = Callable[..., Any]


def test_a_question_that_hangs_holds_up_neither_its_asker_nor_another_model(run: Run) -> None:
    """It is given up in time; about that model nothing more is asked until it has been answered."""

    async def scenario() -> None:
        checks = Checks(0.05)
        mended = threading.Event()
        asked: list[str] = []

        def hang() -> int:
            asked.append("a")
            mended.wait(60)
            return 1

        for _ in range(3):
            with pytest.raises(Unanswered):
                await checks.ask("a", hang)
        assert asked == ["a"]
        assert await checks.ask("b", lambda: 2) == 2
        mended.set()
        async with asyncio.timeout(50):
            while True:
                try:
                    assert await checks.ask("a", lambda: 3) == 3
                    break
                except Unanswered:
                    await asyncio.sleep(0)

    run(scenario())


def test_what_a_question_raises_reaches_its_asker(run: Run) -> None:
    """As it was raised."""

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            await Checks(20.0).ask("a", lambda: 1 // 0)

    run(scenario())
