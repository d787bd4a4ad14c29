"""Doors on real sockets: who is let in, what no route answers, what a reload changes and leaves alone."""

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from engine.parts import Bench
from ports import free_port

from gpud.core.errors import NoSuchModel
from gpud.core.events import Kind, Notice
from gpud.core.facts import Endpoint, Model
from gpud.core.keys import ApiKey, Rate, Right
from gpud.http.access import Rules
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.exchange import Exchange
from gpud.http.keys import Keys
from gpud.http.listening import PassedSocket, TcpAddress, UnixAddress
from gpud.http.metrics import Metrics
from gpud.http.routing import Route, Router
from gpud.http.shapes import Api

Answer = tuple[int, dict[str, str], bytes]


async def hello(exchange: Exchange) -> None:
    await exchange.answer({"hello": exchange.caller.label})


async def unknown(exchange: Exchange) -> None:
    raise NoSuchModel('there is no model "x"')


async def broken(exchange: Exchange) -> None:
    raise RuntimeError("a secret detail")


ROUTES = (
    Route("GET", "/hello", hello, Api.OPENAI),
    Route("POST", "/change", hello, Api.OPENAI, changes=True),
    Route("GET", "/unknown", unknown, Api.OPENAI),
    Route("GET", "/broken", broken, Api.OPENAI),
    Route("GET", "/open", hello, Api.OPENAI, open=True),
)


class House:
    """Doors in front of a real engine."""

    def __init__(self, root: Path, bench: Bench) -> None:
        self.root = root
        self.told: list[Notice] = []
        self.pool = Pool()
        self.metrics = Metrics(bench.engine)
        self.doors = Doors(
            bench.engine,
            {"front": Router(ROUTES)},
            say=self.told.append,
            observe=self.metrics.observe,
            who_listens=lambda port: f"the test at {port}",
        )
        self.path = str(root / "front.sock")

    async def open(self, *, keys: Keys | None = None, rules: Rules | None = None, port: int = 0) -> None:
        addresses = (UnixAddress(self.path), *((TcpAddress("127.0.0.1", port),) if port else ()))
        await self.doors.apply([Opening("front", addresses, rules or Rules())], keys)

    async def ask(self, method: str, path: str, **headers: str) -> Answer:
        endpoint = Endpoint(socket=self.path)
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        async with self.pool.request(endpoint, method, path, headers=pairs) as response:
            body = await response.read(1 << 20)
            fields = {name.decode().lower(): value.decode() for name, value in response.headers}
            return response.status, fields, body

    async def close(self) -> None:
        await self.doors.close(1.0)
        await self.pool.close()


Scene = Callable[[House], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        async def work() -> None:
            async with Bench(Model("a", "fake")) as bench:
                house = House(tmp_path, bench)
                try:
                    await scene(house)
                finally:
                    await house.close()

        asyncio.run(asyncio.wait_for(work(), 50))

    return run


def test_a_route_answers_and_its_error_has_the_shape_of_its_api(play: Callable[[Scene], None]) -> None:
    """A GpudError is told, a defect of ours is not."""

    async def scene(house: House) -> None:
        await house.open()
        assert (await house.ask("GET", "/hello"))[0] == 200
        status, _, body = await house.ask("GET", "/unknown")
        assert (status, b"model_not_found" in body) == (404, True)
        status, _, body = await house.ask("GET", "/broken")
        assert status == 500
        assert b"secret detail" not in body

    play(scene)


def test_what_is_not_there_and_what_is_asked_wrongly(play: Callable[[Scene], None]) -> None:
    """404, and 405 with what it would answer."""

    async def scene(house: House) -> None:
        await house.open()
        status, _, body = await house.ask("GET", "/nowhere")
        assert (status, b"not_found" in body) == (404, True)
        status, fields, _ = await house.ask("GET", "/change")
        assert (status, fields["allow"]) == (405, "POST")

    play(scene)


def test_a_foreign_page_comes_in_only_when_it_is_listed(play: Callable[[Scene], None]) -> None:
    """And its browser is told so beforehand."""

    async def scene(house: House) -> None:
        await house.open(rules=Rules(cors_origins=("http://localhost:5000",)))
        status, fields, _ = await house.ask("GET", "/hello", Origin="http://localhost:5000")
        assert (status, fields["access-control-allow-origin"]) == (200, "http://localhost:5000")
        assert (await house.ask("POST", "/change", Origin="http://evil.example"))[0] == 403
        asked = {"Origin": "http://localhost:5000", "Access_Control_Request_Method": "POST"}
        assert (await house.ask("OPTIONS", "/change", **asked))[0] == 204

    play(scene)


def test_a_key_is_needed_over_tcp_once_there_are_keys(play: Callable[[Scene], None]) -> None:
    """Nobody learns without one which routes there are; what is open is open."""

    async def scene(house: House) -> None:
        port = free_port()
        secret = "gpud-" + "k" * 40
        key = ApiKey("alice", hashlib.sha256(secret.encode()).digest(), ("*",), None, None, frozenset({Right.USE}))
        await house.open(keys=Keys([key]), rules=Rules(without_key=frozenset()), port=port)
        endpoint = Endpoint(host="127.0.0.1", port=port)

        async def ask(method: str, path: str, *headers: tuple[str, str]) -> int:
            async with house.pool.request(endpoint, method, path, headers=headers) as response:
                await response.read(1 << 20)
                return response.status

        bearer = ("Authorization", f"Bearer {secret}")
        assert await ask("GET", "/hello") == 401
        assert await ask("GET", "/nowhere") == 401
        assert await ask("GET", "/open") == 200
        assert await ask("GET", "/hello", bearer) == 200
        assert await ask("POST", "/change", bearer) == 403

    play(scene)


def test_a_kept_connection_is_let_in_by_the_rules_of_now(play: Callable[[Scene], None]) -> None:
    """The same request on the same connection: what was found out about it holds no longer than the rules do."""

    async def scene(house: House) -> None:
        port = free_port()
        endpoint = Endpoint(host="127.0.0.1", port=port)

        async def ask() -> int:
            async with house.pool.request(endpoint, "GET", "/hello") as response:
                await response.read(1 << 20)
                return response.status

        await house.open(port=port)
        assert [await ask(), await ask()] == [200, 200]
        await house.open(rules=Rules(rate_without_key=Rate(2, 3600.0)), port=port)
        assert [await ask(), await ask(), await ask()] == [200, 200, 429]
        key = ApiKey("alice", hashlib.sha256(b"k").digest(), ("*",), None, None, frozenset({Right.USE}))
        await house.open(keys=Keys([key]), rules=Rules(without_key=frozenset()), port=port)
        assert await ask() == 401
        await house.open(port=port)
        assert await ask() == 200
        assert house.pool.connections == 1

    play(scene)


def test_a_door_that_is_taken_is_told_and_tried_again_at_the_next_reload(play: Callable[[Scene], None]) -> None:
    """Everything else goes on meanwhile."""

    async def scene(house: House) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            await house.doors.apply([Opening("front", (TcpAddress("127.0.0.1", port),))], None)
            assert [notice.kind for notice in house.told] == [Kind.DOOR_FAILED]
            assert house.told[0].message == (
                f"Cannot listen on 127.0.0.1:{port} (door front): Address already in use, by the test at {port}"
            )
            assert house.told[0].detail == ("What to do: stop it, or set http.front.port and reload gpud",)
        await house.doors.apply([Opening("front", (TcpAddress("127.0.0.1", port),))], None)
        assert house.told[-1].kind is Kind.DOOR_OPENED

    play(scene)


def test_a_reload_changes_the_rules_and_keeps_the_connections(play: Callable[[Scene], None]) -> None:
    """The same server, the same socket."""

    async def scene(house: House) -> None:
        await house.open()
        assert (await house.ask("GET", "/hello"))[0] == 200
        assert house.pool.connections == 1
        await house.open(rules=Rules(cors_origins=("http://localhost:5000",)))
        assert house.pool.connections == 1
        status, fields, _ = await house.ask("GET", "/hello", Origin="http://localhost:5000")
        assert (status, fields["access-control-allow-origin"]) == (200, "http://localhost:5000")
        assert [notice.kind for notice in house.told] == [Kind.DOOR_OPENED]

    play(scene)


def test_requests_are_counted_by_route_and_never_by_path(play: Callable[[Scene], None]) -> None:
    """Whatever a stranger asks for."""

    async def scene(house: House) -> None:
        await house.open()
        await house.ask("GET", "/hello")
        await house.ask("GET", "/a-path-of-a-stranger")
        _, text = house.metrics.render("")
        assert b'route="/hello"' in text
        assert b"a-path-of-a-stranger" not in text

    play(scene)


def test_who_comes_on_a_passed_socket_while_gpud_ends_is_left_to_the_next_one(
    play: Callable[[Scene], None],
) -> None:
    """It is neither refused nor answered; a door of gpud's own answers to the last, and no reload opens the other."""

    async def scene(house: House) -> None:
        with socket.create_server(("127.0.0.1", 0)) as passed:
            opening = Opening("front", (PassedSocket(passed.fileno()),))
            await house.doors.apply([opening], None)
            assert house.doors.addresses["front"][0].startswith("127.0.0.1:")
            house.doors.hand_over()
            passed.setblocking(False)
            _, writer = await asyncio.open_connection(*passed.getsockname())
            writer.write(b"GET /open HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await house.doors.apply([opening], None)
            accepted, _ = await asyncio.get_running_loop().sock_accept(passed)
            with accepted:
                assert (await asyncio.get_running_loop().sock_recv(accepted, 99)).startswith(b"GET /open")
            writer.close()
            await writer.wait_closed()
        await house.open()
        house.doors.hand_over()
        assert (await house.ask("GET", "/open"))[0] == 200

    play(scene)
