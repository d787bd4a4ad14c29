"""Has Ollama download a model, through gpud's door for Ollama's clients: what Ollama tells, as events of a download."""

import asyncio
import threading
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from gpud.cli import http
from gpud.cli.exits import Usage
from gpud.cli.http import Door, Question
from gpud.core.errors import GpudError

DEFAULT_URL = "http://127.0.0.1:11434"
NAME_CHARACTERS = 256
STATUS_CHARACTERS = 200


def checked_name(name: str) -> str:
    """Raises Usage."""
    if not name or not name.isprintable() or " " in name or len(name) > NAME_CHARACTERS:
        raise Usage(
            f'pull: "{name[:64]}" is not the name of an Ollama model', hint="write ollama:NAME or ollama:NAME:TAG"
        )
    return name


def door(arguments: Namespace) -> Door:
    """What --url says, else the configured door, else the usual one."""
    if arguments.url:
        address = http.parse_url(arguments.url)
    else:
        address = http.configured(arguments.bus, ("ollama",)) or http.parse_url(DEFAULT_URL)
    return Door(address, http.api_key(arguments))


async def pulled(door: Door, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """Raises GpudError. Left early, Ollama stops, and keeps what has come."""
    layers: dict[str, tuple[int, int]] = {}
    async with aclosing(_told(door, name)) as source:
        async for told in source:
            status = str(told.get("status", ""))
            completed, total = told.get("completed", 0), told.get("total")
            if isinstance(total, int) and isinstance(completed, int):
                layers[str(told.get("digest"))] = completed, total
                done, whole = (sum(column) for column in zip(*layers.values(), strict=True))
                yield {"event": "progress", "stage": "downloading", "done": done, "total": whole}
            elif status == "success":
                yield {"event": "finished"}
                return
            elif status:
                yield {"event": "said", "text": printable(status)}
    raise GpudError(f'Ollama did not report the end of its download of "{name}"', hint="run the same command again")


def printable(text: str) -> str:
    """Without anything that a terminal would obey: what Ollama says comes from elsewhere in part."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:STATUS_CHARACTERS])


async def _told(door: Door, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """What Ollama says, line by line. A thread of its own waits for it: one that whoever presses Ctrl-C need not wait
    for, where Ollama is still being started.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[dict[str, Any] | GpudError | None] = asyncio.Queue()
    questions: list[Question] = []

    def tell(line: dict[str, Any] | GpudError | None) -> None:
        # The loop may have been closed meanwhile: nobody listens any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        try:
            question = door.stream("/api/pull", {"model": name, "stream": True})
            questions.append(question)
            for line in question.objects():
                tell(line)
            tell(None)
        except GpudError as problem:
            tell(problem)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while (line := await lines.get()) is not None:
            if isinstance(line, GpudError):
                raise line
            yield line
    finally:
        for question in questions:
            question.close()
