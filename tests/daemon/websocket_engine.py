"""An engine that says back over a WebSocket what it is told, and counts what it has said.

websocket_engine.py PATH.sock
"""

import asyncio
import sys
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.http11 import Request, Response


async def say_back(connection: ServerConnection) -> None:
    said = 0
    async for message in connection:
        said += 1
        await connection.send(message)
        if message == "how many?":
            await connection.send(str(said))


def health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(HTTPStatus.OK, "{}") if request.path == "/health" else None


async def main() -> None:
    async with unix_serve(say_back, sys.argv[1], process_request=health, max_size=None) as server:
        await server.serve_forever()


asyncio.run(main())
