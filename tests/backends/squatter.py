"""Somebody else on an engine's port: a launcher that lets a process older than the engine take it."""

import asyncio
from typing import Any

from place import Place

from gpud.core.ports import Child, Command, LineReader


class Squatter:
    """Takes the first port that is chosen, and answers there as if it were well."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.server: asyncio.Server | None = None

    async def spawn(self, command: Command, on_line: LineReader | None = None) -> Child:
        async def friendly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        port = int(command.argv[command.argv.index("--port") + 1])
        self.server = self.server or await asyncio.start_server(friendly, "127.0.0.1", port)
        return await self.place.launcher.spawn(command, on_line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place.launcher, name)
