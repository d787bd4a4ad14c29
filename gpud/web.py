"""The HTTP side put together from the configuration: which doors there are, which routes they have, who is let in.

The only module besides the daemon that knows both the configuration and the room ``http``. It answers nothing itself.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from gpud.config import Config, load_keys
from gpud.config.records import Door, HttpConfig
from gpud.core.events import Notice
from gpud.core.keys import ApiKey
from gpud.engine import Engine
from gpud.http.access import Rules
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.feed import Feed
from gpud.http.gateway import Gateway, GatewaySettings
from gpud.http.keys import Keys
from gpud.http.limits import HeadLimits, ServerLimits
from gpud.http.lines import Lines
from gpud.http.listening import Address, TcpAddress, Tls, UnixAddress
from gpud.http.metrics import Metrics
from gpud.http.requests import Requests
from gpud.http.routing import Router
from gpud.http.shapes import Api

APIS = {"front": Api.OPENAI, "management": Api.MANAGEMENT, "ollama": Api.OLLAMA}
"""How the clients of each door read what no route answers."""

Keyring = tuple[ApiKey, ...] | None


async def read_keys(wanted: Config) -> Keyring:
    """What is in the file of keys, or None where none is configured. Raises ConfigInvalid."""
    path = wanted.http.api_keys_file
    return await asyncio.to_thread(load_keys, Path(path)) if path else None


class Web:
    """Owns the doors and what their routes share, from the first request to the last."""

    def __init__(self, engine: Engine, lines: Lines, say: Callable[[Notice], None]) -> None:
        self._lines = lines
        self._pool = Pool()
        self._gateway = Gateway(engine, self._pool)
        self._metrics = Metrics(engine)
        self._feed = Feed(engine, lines=lines)
        self._requests = Requests()
        for listener in (self._lines.listen, self._metrics.listen, self._feed.listen):
            engine.subscribe(listener)
        routers = {
            "front": Router((*self._gateway.routes(), *self._requests.routes())),
            "management": Router((*self._gateway.v1_routes(), *self._requests.routes())),
            "ollama": Router(self._gateway.v1_routes()),
        }
        self._doors = Doors(engine, routers, say=say, metrics=self._metrics, requests=self._requests)

    def notice(self, notice: Notice) -> None:
        """Something that the daemon tells besides what the engine does."""
        for tell in (self._lines.notice, self._metrics.notice, self._feed.notice):
            tell(notice)

    async def apply(self, wanted: HttpConfig, keys: Keyring) -> None:
        """From now on as configured. Doors that listen as before keep their connections."""
        self._gateway.settings = GatewaySettings(
            body_bytes=wanted.limits.body_bytes, heartbeat_s=wanted.heartbeat_s, default_model=wanted.default_model
        )
        openings = [_opening(name, door, wanted) for name, door in wanted.doors.items() if door.enable]
        await self._doors.apply(openings, None if keys is None else Keys(keys))

    async def close(self, drain_s: float) -> None:
        """Answers that are under way may end within this time; streams of events end at once."""
        self._feed.close()
        self._lines.close()
        await self._doors.close(drain_s)
        await self._pool.close()


def _opening(name: str, door: Door, wanted: HttpConfig) -> Opening:
    limits = wanted.limits
    addresses: list[Address] = [TcpAddress(host, door.port) for host in door.hosts]
    if door.socket:
        addresses.append(UnixAddress(door.socket, door.socket_mode))
    tls = Tls(wanted.tls.certificate, wanted.tls.key) if wanted.tls.certificate else None
    return Opening(
        name,
        tuple(addresses),
        Rules(
            addresses=door.hosts,
            allowed_hosts=wanted.allowed_hosts,
            cors_origins=wanted.cors_origins,
            without_key=wanted.without_key,
            rate=wanted.rate,
            rate_without_key=wanted.rate_without_key,
            own_uid=os.geteuid(),
        ),
        ServerLimits(
            head=HeadLimits(header_bytes=limits.header_bytes),
            connections=limits.connections,
            per_peer=limits.connections_per_address,
            header_s=limits.header_s,
            body_s=limits.body_s,
            stall_s=limits.write_s,
            idle_s=limits.idle_s,
        ),
        tls,
        APIS[name],
    )
