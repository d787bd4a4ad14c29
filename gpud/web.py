"""The HTTP side put together from the configuration: which doors there are, which routes they have, who is let in.

The only module besides the daemon that knows both the configuration and the room ``http``. It answers nothing itself.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from gpud.config import Config, load_keys
from gpud.config.records import Door, HttpConfig
from gpud.core.events import Notice
from gpud.core.keys import ApiKey
from gpud.core.modelfile import ModelFile
from gpud.core.ports import Files
from gpud.engine import Engine
from gpud.http.access import Rules
from gpud.http.admin import admin_routes
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.engine_texts import EngineTexts
from gpud.http.feed import Feed
from gpud.http.gateway import Gateway, GatewaySettings
from gpud.http.keys import Keys
from gpud.http.known_models import KnownModels
from gpud.http.limits import HeadLimits, ServerLimits
from gpud.http.lines import Lines
from gpud.http.listening import Address, PassedSocket, TcpAddress, Tls, UnixAddress
from gpud.http.management import management_routes
from gpud.http.message import Peer
from gpud.http.metrics import Metrics, RequestSeen
from gpud.http.ollama import OllamaFront, OllamaSettings
from gpud.http.ollama_relay import OllamaServer
from gpud.http.own import OwnSettings, Parts
from gpud.http.requests import Requests
from gpud.http.routing import Router
from gpud.http.shapes import Api

log = logging.getLogger(__name__)

APIS = {"front": Api.OPENAI, "management": Api.MANAGEMENT, "ollama": Api.OLLAMA}
"""How the clients of each door read what no route answers."""

Keyring = tuple[ApiKey, ...] | None


async def read_keys(wanted: Config) -> Keyring:
    """What is in the file of keys, or None where none is configured. Raises ConfigInvalid."""
    path = wanted.http.api_keys_file
    return await asyncio.to_thread(load_keys, Path(path)) if path else None


class Web:
    """Owns the doors and what their routes share, from the first request to the last."""

    def __init__(
        self,
        engine: Engine,
        lines: Lines,
        say: Callable[[Notice], None],
        *,
        files: Files,
        quantization: Callable[[ModelFile], str],
        who_listens: Callable[[int], str],
        session_of: Callable[[Peer], str],
        passed: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """``passed``: for doors by name, the sockets that gpud was started with; they replace host and port.
        ``who_listens`` and ``session_of`` as of Doors.
        """
        self._passed = passed or {}
        self._lines = lines
        self._pool = Pool()
        known = KnownModels(engine, files, quantization)
        self._gateway = Gateway(engine, self._pool, known=known)
        self._metrics = Metrics(engine)
        self._feed = Feed(engine, lines=lines)
        self._requests = Requests()
        for listener in (self._lines.listen, self._metrics.listen):
            engine.subscribe(listener, touched=False)
        engine.subscribe(self._feed.listen)
        texts = EngineTexts(engine, self._pool)
        self._parts = Parts(engine, self._pool, self._feed, lines, self._metrics, files, known, texts)
        self._ollama = OllamaFront(engine, self._pool, self._gateway, known=known)
        v1 = (*self._gateway.v1_routes(), *self._requests.routes())
        routers = {
            "front": Router((*self._gateway.routes(), *self._requests.routes(), *admin_routes(self._parts))),
            "management": Router((*management_routes(self._parts, v1), *v1)),
            "ollama": Router(self._ollama.routes()),
        }
        self._doors = Doors(
            engine,
            routers,
            say=say,
            observe=self._seen,
            requests=self._requests,
            who_listens=who_listens,
            session_of=session_of,
        )

    def _seen(self, seen: RequestSeen) -> None:
        """A request is over: it is counted, and told to those who listen."""
        self._metrics.observe(seen)
        self._feed.observe(seen)

    def notice(self, notice: Notice) -> None:
        """Something that the daemon tells besides what the engine does."""
        for tell in (self._lines.notice, self._metrics.notice, self._feed.notice):
            tell(notice)

    async def apply(self, configured: Config, keys: Keyring, ollama: object = None) -> None:
        """From now on as configured; ``ollama`` is what runs Ollama, where a model has it. Doors that listen as before
        keep their connections.
        """
        wanted = configured.http
        attached = frozenset(name for name, engine in configured.engines.items() if engine.url)
        there = await asyncio.to_thread(Path(configured.base_directory).is_dir)
        models_path = configured.base_directory if there else ""
        self._parts.settings = OwnSettings(models_path, wanted.default_model, attached)
        self._ollama.settings = OllamaSettings(attached="ollama" in attached)
        self._ollama.server = ollama if isinstance(ollama, OllamaServer) else None
        self._gateway.settings = GatewaySettings(
            body_bytes=wanted.limits.body_bytes,
            heartbeat_s=wanted.heartbeat_s,
            default_model=wanted.default_model,
            stall_s=wanted.limits.answer_s,
        )
        openings = []
        for name, door in wanted.doors.items():
            passed = self._passed.get(name, ())
            if door.enable:
                openings.append(_opening(name, door, wanted, passed))
            elif passed:
                log.warning(
                    'a socket was passed for the door "%s", which http.%s.enable closes: who connects there waits in '
                    "vain; disable gpud-%s.socket",
                    *(name, name, name),
                )
        await self._doors.apply(openings, None if keys is None else Keys(keys))

    def hand_over(self) -> None:
        """gpud is going to end: what comes on sockets that were passed is for the next one."""
        self._doors.hand_over()

    async def close(self, drain_s: float) -> None:
        """Answers that are under way may end within this time; streams of events end at once."""
        self._feed.close()
        self._lines.close()
        await self._doors.close(drain_s)
        await self._pool.close()


def _opening(name: str, door: Door, wanted: HttpConfig, passed: tuple[int, ...]) -> Opening:
    limits = wanted.limits
    addresses: list[Address] = [PassedSocket(fd) for fd in passed]
    addresses = addresses or [TcpAddress(host, door.port) for host in door.hosts]
    if door.socket:
        addresses.append(UnixAddress(door.socket, door.socket_mode))
    tls = Tls(wanted.tls.certificate, wanted.tls.key) if wanted.tls.certificate else None
    return Opening(
        name,
        tuple(addresses),
        Rules(
            addresses=_hosts_of(passed) or door.hosts,
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


def _hosts_of(passed: tuple[int, ...]) -> tuple[str, ...]:
    """The addresses that passed sockets are bound to; what is no internet socket has none."""
    found = []
    for fd in passed:
        try:
            each = socket.socket(fileno=fd)
        except OSError:
            continue  # The door says so when it opens.
        try:
            where = each.getsockname()
        finally:
            each.detach()
        if isinstance(where, tuple):
            found.append(str(where[0]))
    return tuple(found)
