"""docs/management.md is true: its tables have every route, and its commands work."""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from house import BOUND_S, House, chatting_house
from test_inference import Engine

from gpud.core.facts import Model
from gpud.http.openapi import plain_path

Run = Callable[..., Any]
PAGE = (Path(__file__).parents[2] / "docs" / "management.md").read_text()
QWEN = Model("qwen3-8b", "fake")


def section(title: str) -> str:
    """What stands below a heading, to the next of its rank."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None
    return found[1]


def routes_of(found: House, door: str) -> list[str]:
    return sorted(f"{route.method} {plain_path(route.path)}" for route in found.routes[door])


def test_the_tables_have_every_route(run: Run, tmp_path: Path) -> None:
    """And none that is not there."""

    async def work() -> None:
        async with chatting_house(tmp_path, Engine(), QWEN) as (found, _):
            for door, title in (("management", "The management door"), ("front", "The admin routes of the front door")):
                told = re.findall(r"^\| `((?:GET|POST|PATCH|DELETE) /[^`]*)` \|", section(title), re.M)
                assert sorted(told) == routes_of(found, door)

    run(work())


def test_the_commands_work(run: Run, tmp_path: Path) -> None:
    """Each as it is written, but for where the door is."""
    commands = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(commands) == 7 and all(line.startswith("curl -s ") for line in commands)

    async def work() -> None:
        async with chatting_house(tmp_path, Engine(), QWEN) as (found, _):
            where = f"curl -sf --unix-socket {found.socket('management')} "
            for command in commands:
                moved = command.replace("curl -s ", where, 1).replace("127.0.0.1:9000", "localhost")
                done = await asyncio.to_thread(
                    subprocess.run, ["sh", "-c", moved], capture_output=True, check=False, timeout=BOUND_S
                )
                assert done.returncode == 0 and done.stdout.startswith(b"{"), command

    run(work())
