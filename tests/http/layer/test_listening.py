"""Where a server listens: addresses, Unix sockets, sockets of the service manager, TLS."""

import asyncio
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gpud.http.limits import ServerLimits
from gpud.http.listening import Address, PassedSocket, TcpAddress, Tls, UnixAddress, is_loopback
from gpud.http.message import Peer, Reply, Request
from gpud.http.server import Server

from .raw import BOUND_S, connected, echo, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Seen:
    """A handler that notes who asked."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    async def __call__(self, request: Request, reply: Reply) -> None:
        self.peers.append(request.peer)
        await echo(request, reply)


def test_several_addresses_lead_to_one_handler(run: Run, tmp_path: Path) -> None:
    """Each is a door with a name; on a Unix socket the kernel says who it is."""

    async def scene() -> None:
        seen = Seen()
        server = Server(seen)
        path = str(tmp_path / "socket")
        four = await server.listen(TcpAddress("127.0.0.1", 0), door="four")
        six = await server.listen(TcpAddress("::1", 0), door="six")
        await server.listen(UnixAddress(path, 0o660), door="local")
        try:
            assert os.stat(path).st_mode & 0o777 == 0o660
            assert len(server.listening) == 3
            async with connected(four.port) as a, connected(six.port, host="::1") as b, connected(path) as c:
                for client in (a, b, c):
                    assert (await client.ask(GET)).status == 200
        finally:
            await server.close()
        assert not os.path.exists(path)
        assert [(peer.door, peer.address, peer.is_loopback) for peer in seen.peers] == [
            ("four", "127.0.0.1", True),
            ("six", "::1", True),
            ("local", "", True),
        ]
        assert (seen.peers[2].uid, seen.peers[2].pid) == (os.getuid(), os.getpid())
        assert seen.peers[2].describe() == f"process {os.getpid()} of user {os.getuid()}"
        assert seen.peers[1].describe().startswith("[::1]:")

    run(scene())


def test_a_name_may_stand_for_several_addresses_with_one_port(run: Run) -> None:
    """localhost is IPv4 and IPv6."""

    async def scene() -> None:
        server = Server(echo)
        listening = await server.listen(TcpAddress("localhost", 0), door="test")
        try:
            async with connected(listening.port) as client:
                assert (await client.ask(GET)).status == 200
        finally:
            await server.close()

    run(scene())


def test_one_address_can_be_left_alone(run: Run) -> None:
    """Who is connected stays; nobody else comes in."""

    async def scene() -> None:
        server = Server(echo)
        first = await server.listen(TcpAddress("127.0.0.1", 0), door="one")
        second = await server.listen(TcpAddress("127.0.0.1", 0), door="two")
        try:
            async with connected(first.port) as client:
                await client.ask(GET)
                server.stop_listening(first)
                with pytest.raises(ConnectionRefusedError):
                    async with connected(first.port):
                        pass
                assert (await client.ask(GET)).status == 200
            async with connected(second.port) as other:
                assert (await other.ask(GET)).status == 200
        finally:
            await server.close()

    run(scene())


@pytest.mark.parametrize(
    "address",
    [
        TcpAddress("192.0.2.1", 80),
        TcpAddress("no-such.invalid", 80),
        PassedSocket(0),
        UnixAddress("/nowhere/socket"),
    ],
)
def test_an_address_that_cannot_be_had_is_named(address: Address, run: Run) -> None:
    """And nothing is left of the attempt."""

    async def scene() -> None:
        server = Server(echo)
        with pytest.raises(OSError, match=r"cannot listen on"):
            await server.listen(address, door="test")
        await server.close()

    run(scene())


def test_a_port_that_is_taken_is_named(run: Run) -> None:
    """With what stands in the way."""

    async def scene() -> None:
        server = Server(echo)
        listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test")
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{listening.port}: Address already in use"):
            await server.listen(TcpAddress("127.0.0.1", listening.port), door="test")
        await server.close()

    run(scene())


def test_a_socket_that_was_left_behind_is_replaced_and_a_file_is_not(run: Run, tmp_path: Path) -> None:
    """A path that somebody else has taken over meanwhile is left to him."""

    async def scene() -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
        server, successor = Server(echo), Server(echo)
        await server.listen(UnixAddress(str(path)), door="test")
        await successor.listen(UnixAddress(str(path)), door="test")
        await server.close()
        async with connected(str(path)) as client:
            assert (await client.ask(GET)).status == 200
        await successor.close()
        path.write_text("precious")
        with pytest.raises(OSError, match="not a socket"):
            await server.listen(UnixAddress(str(path)), door="test")
        assert path.read_text() == "precious"

    run(scene())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_socket_that_was_passed_is_served(family: int, run: Run, tmp_path: Path) -> None:
    """As the service manager passes them: bound, listening, and with clients that wait already."""

    async def scene() -> None:
        passed = socket.socket(family)
        passed.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        passed.listen()
        where = passed.getsockname()[1] if family == socket.AF_INET else str(tmp_path / "socket")
        seen = Seen()
        server = Server(seen)
        async with connected(where) as client:
            await client.send(GET)
            listening = await server.listen(PassedSocket(passed.fileno()), door="front")
            assert (await client.answer()).status == 200
            assert seen.peers[0].door == "front"
            assert listening.describe().startswith(f"127.0.0.1:{where}" if family == socket.AF_INET else str(where))
            await server.close()
        # It is open as long as its manager keeps it: who comes now waits for the next to serve it.
        async with connected(where) as client:
            await client.send(GET)
            successor = Server(echo)
            await successor.listen(PassedSocket(passed.fileno()), door="front")
            assert (await client.answer()).status == 200
            await successor.close()
        passed.close()
        if family == socket.AF_UNIX:
            assert os.path.exists(str(where)), "the path is its manager's"

    run(scene())


def test_the_queue_of_a_passed_socket_is_its_managers(run: Run) -> None:
    """How many may wait there is not changed, and who waits when a server closes is not reset."""

    def longest(sock: socket.socket) -> int:
        # Of a listening socket the kernel tells it as tcpi_sacked.
        return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:32], sys.byteorder)

    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=37) as passed:
            server, successor = Server(echo), Server(echo)
            await server.listen(PassedSocket(passed.fileno()), door="front")
            assert longest(passed) == 37
            with socket.create_connection(passed.getsockname(), 10) as client:
                client.sendall(GET)
                # The loop has had no turn in which it could accept.
                server.retire()
                await server.close()
                await successor.listen(PassedSocket(passed.fileno()), door="front")
                client.setblocking(False)
                answer = await asyncio.get_running_loop().sock_recv(client, 4096)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"Connection: close" not in answer, "the successor has answered"
                await successor.close()

    run(scene())


def test_who_is_accepted_as_the_door_closes_is_answered(run: Run) -> None:
    """Also where somebody else goes on listening: it was taken, so it is served."""

    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as passed:
            server = Server(echo)
            await server.listen(PassedSocket(passed.fileno()), door="front")
            with socket.create_connection(passed.getsockname(), 10) as client:
                client.sendall(GET)
                await until(lambda: bool(server._listeners[0].coming or server._connections))
                closing = asyncio.create_task(server.close(5.0))
                client.setblocking(False)
                assert (await asyncio.get_running_loop().sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
                await closing

    run(scene())


def test_who_cannot_be_accepted_is_accepted_later(run: Run) -> None:
    """When the descriptors have run out nobody spins, and who waited is answered once there are some again."""

    async def scene() -> None:
        server = Server(echo)
        listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test")
        with socket.create_connection(("127.0.0.1", listening.port), 10) as client:
            client.sendall(GET)
            client.setblocking(False)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, before[1]))
            try:
                await until(lambda: server._listeners[0]._again is not None)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert (await asyncio.get_running_loop().sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
        await server.close()

    run(scene())


@pytest.fixture
def certificate(localhost_pem: Path) -> Tls:
    """One file has both."""
    return Tls(str(localhost_pem), str(localhost_pem))


def test_tls_is_served(certificate: Tls, run: Run) -> None:
    """Bodies of any size pass both ways; the request knows that it was encrypted; who leaves is missed."""

    async def scene() -> None:
        left = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            assert request.peer.is_encrypted
            if request.path == "/wait":
                try:
                    await asyncio.Event().wait()
                finally:
                    left.set()
            await reply.send(200, (), await request.body(1 << 30))

        server = Server(handler)
        listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test", tls=certificate)
        context = ssl.create_default_context(cafile=certificate.certificate)
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", listening.port, ssl=context, server_hostname="localhost"
            )
            size = 5_000_000
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(size) == b"x" * size
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: any(each.work for each in server._connections))
            writer.close()
            async with asyncio.timeout(BOUND_S):
                await left.wait()
            await writer.wait_closed()
            async with connected(listening.port) as plain:
                await plain.send(GET)
                assert b"HTTP" not in await plain.rest()
        finally:
            await server.close()

    run(scene())


def test_only_so_many_handshakes_are_made_at_once(certificate: Tls, run: Run) -> None:
    """Who comes then waits until one is over, however that ended; the close of the server ends those that are under
    way.
    """

    async def scene() -> None:
        server = Server(echo, ServerLimits(handshakes=1))
        listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test", tls=certificate)
        context = ssl.create_default_context(cafile=certificate.certificate)

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", listening.port, ssl=context, server_hostname="localhost"
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            return head

        try:
            async with connected(listening.port) as silent:
                await until(lambda: bool(server._listeners[0].coming))
                second = asyncio.create_task(ask())
                third = asyncio.create_task(ask())
                async with connected(listening.port):
                    # Connected, as the kernel has it: the loop has had its turns for the two before.
                    assert server._listeners[0].coming == 1
                    assert not (second.done() or third.done() or server.connections)
                silent.leave()
                assert [(await each)[:12] for each in (second, third)] == [b"HTTP/1.1 200"] * 2
            async with connected(listening.port):
                await until(lambda: bool(server._listeners[0].coming))
                await server.close()
        finally:
            await server.close()

    run(scene())


def test_a_certificate_that_cannot_be_used_is_told(run: Run, tmp_path: Path) -> None:
    """Before anybody connects."""

    async def scene() -> None:
        server = Server(echo)
        with pytest.raises(OSError):
            await server.listen(TcpAddress("127.0.0.1", 0), door="test", tls=Tls(str(tmp_path / "no"), str(tmp_path)))
        assert server.listening == ()
        await server.close()

    run(scene())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.0.1", False),
        ("fe80::1", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_known_in_every_spelling(address: str, expected: bool) -> None:
    """An address that only looks local is not."""
    assert is_loopback(address) is expected
