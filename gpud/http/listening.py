"""Where a server listens: TCP addresses, Unix sockets, sockets that the service manager passed; with or without TLS.

It opens and closes sockets and says who is at the other end. It never reads from a connection.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpud.core.record import Record
from gpud.http.message import Peer

if TYPE_CHECKING:
    import ssl

BACKLOG = 512
"""Connections that may wait to be accepted: a burst of clients comes within one turn of the loop."""


class TcpAddress(Record):
    """A host name or an address, and a port; 0 lets the kernel choose one."""

    host: str
    port: int


class UnixAddress(Record):
    """A path; who may connect is up to its mode."""

    path: str
    mode: int = 0o600


class PassedSocket(Record):
    """A listening socket that this process was started with.

    Who passed it goes on listening: clients wait while nobody accepts them. A duplicate is used, and what was closed
    can be opened again.
    """

    fd: int


Address = TcpAddress | UnixAddress | PassedSocket


class Tls(Record):
    """The files of a certificate (with its chain) and of its private key, in PEM."""

    certificate: str
    key: str

    def context(self) -> "ssl.SSLContext":
        """Raises OSError (ssl.SSLError is one) when the files cannot be used. Reads files: not for the loop."""
        # Imported only where it is used: it is 4 MB that most machines never need.
        import ssl

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.certificate, self.key)
        return context


def open_sockets(address: Address) -> list[socket.socket]:
    """Bound and listening sockets; a name may stand for several. Raises OSError that names the address.

    Resolves names and touches files: not for the loop.
    """
    if isinstance(address, PassedSocket):
        return [_passed(address.fd)]
    if isinstance(address, UnixAddress):
        return [_unix(address)]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except socket.gaierror as problem:
        raise OSError(
            problem.errno, f"cannot listen on {shown((address.host, address.port))}: {problem.strerror}"
        ) from None
    sockets: list[socket.socket] = []
    port = address.port
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            sockets.append(_tcp(family, kind, protocol, (where[0], port, *where[2:])))
            # A port that the kernel chose for the first address is the one for all of them.
            port = port or sockets[0].getsockname()[1]
    except OSError as problem:
        for each in sockets:
            each.close()
        raise OSError(
            problem.errno, f"cannot listen on {shown((address.host, address.port))}: {problem.strerror or problem}"
        ) from None
    return sockets


def _tcp(family: int, kind: int, protocol: int, where: tuple[object, ...]) -> socket.socket:
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(where)
        server.listen(BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


def _unix(address: UnixAddress) -> socket.socket:
    """The socket is private until its mode is set: it is bound beside its path and renamed, so that nobody connects
    before, and whoever listened there goes on with whom it has.
    """
    path = Path(address.path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, f'cannot listen on "{path}": something that is not a socket is there')
    aside = path.with_name(f".{path.name}.new")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        aside.unlink(missing_ok=True)
        server.bind(str(aside))
        aside.chmod(address.mode)
        server.listen(BACKLOG)
        aside.rename(path)
    except BaseException as problem:
        server.close()
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise OSError(problem.errno, f'cannot listen on "{path}": {problem.strerror or problem}') from None
        raise
    return server


def _passed(fd: int) -> socket.socket:
    try:
        duplicate = os.dup(fd)
        try:
            server = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            raise
    except OSError as problem:
        raise OSError(problem.errno, f"cannot listen on the passed descriptor {fd}: {problem.strerror}") from None
    if server.type != socket.SOCK_STREAM or not server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        server.close()
        raise OSError(errno.EINVAL, f"cannot listen on the passed descriptor {fd}: it is not a listening stream socket")
    return server


def shown(where: object) -> str:
    """What a socket is bound to, as one writes it; empty for a Unix socket without a name."""
    if isinstance(where, tuple):
        host, port = where[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(where)


def identify(transport: asyncio.BaseTransport, door: str) -> Peer:
    """Who is at the other end of an accepted connection."""
    connection: socket.socket = transport.get_extra_info("socket")
    encrypted = transport.get_extra_info("sslcontext") is not None
    if connection.family == socket.AF_UNIX:
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(door, uid=uid, gid=gid, pid=pid, is_loopback=True, is_encrypted=encrypted)
    name = transport.get_extra_info("peername") or ("", 0)
    address = str(name[0]).partition("%")[0]
    own = transport.get_extra_info("sockname") or ("", 0)
    at = (str(own[0]), int(own[1]))
    return Peer(door, address, int(name[1]), is_loopback=is_loopback(address), is_encrypted=encrypted, at=at)


def is_loopback(address: str) -> bool:
    """True for 127.0.0.0/8, ::1, and the former written as an IPv6 address."""
    if address.startswith("127."):
        return True
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


def network_of(address: str) -> str:
    """Whose an address is: of IPv4 an address is one client's, of IPv6 a whole /64, which everybody has at least."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, ipaddress.IPv6Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


class Closes(Protocol):
    """What accepts clients on a socket until it is closed."""

    def close(self) -> None: ...


class Listening:
    """One address that a server listens on. ``port`` is the real one."""

    def __init__(self, address: Address, door: str, servers: Sequence[Closes], sockets: list[socket.socket]) -> None:
        self.address = address
        self.door = door
        self._servers = tuple(servers)
        self._inode = _inode(address.path) if isinstance(address, UnixAddress) else None
        first = self._where = sockets[0].getsockname()
        self.port: int = first[1] if isinstance(first, tuple) else 0

    def describe(self) -> str:
        """For a message."""
        if isinstance(self.address, TcpAddress):
            return shown((self.address.host, self.port))
        if isinstance(self.address, UnixAddress):
            return self.address.path
        return f"{shown(self._where)}, as passed by the service manager"

    def close(self) -> None:
        """Accept nobody else; connections that exist go on. A Unix socket is removed if its path is still ours."""
        for server in self._servers:
            server.close()
        self._servers = ()
        if isinstance(self.address, UnixAddress) and self._inode is not None:
            if _inode(self.address.path) == self._inode:
                with contextlib.suppress(OSError):
                    Path(self.address.path).unlink()
            self._inode = None


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
