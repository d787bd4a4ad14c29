"""Which control group a TCP client of this machine is of, asked of the kernel by netlink (sock_diag), as ss does.

One question about one connection, which needs no rights; no table is read and no process is looked at.
"""

import ipaddress
import logging
import socket
import struct

log = logging.getLogger(__name__)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1
_ERROR = 2
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_CGROUP_ID = 21
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI")
_MESSAGE_BYTES = 72
"""An inet_diag_msg, before its attributes."""

ANSWER_S = 0.05
"""The kernel answers before the question has been sent; this only bounds what cannot be."""


def cgroup_of_client(client: tuple[str, int], server: tuple[str, int]) -> int:
    """The number of the group in which the client's socket was made, by both ends of its connection; 0 for none."""
    try:
        family, ends = _ends(client, server)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(ANSWER_S)
            body = _ASK.pack(family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE) + ends
            kernel.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + body)
            return _number(kernel.recv(8192))
    except (OSError, ValueError, struct.error) as problem:
        log.debug("the kernel does not say whose connection %s is: %s", client, problem)
        return 0


def _ends(client: tuple[str, int], server: tuple[str, int]) -> tuple[int, bytes]:
    """An inet_diag_sockid, seen from the client. An IPv4 client of an IPv6 server has an IPv4 socket."""
    addresses = []
    for text, _ in (client, server):
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        addresses.append(address.packed)
    if len(addresses[0]) != len(addresses[1]):
        raise ValueError("both ends are of different kinds")
    family = socket.AF_INET if len(addresses[0]) == 4 else socket.AF_INET6
    packed = b"".join(address.ljust(16, b"\0") for address in addresses)
    return family, struct.pack("!HH", client[1], server[1]) + packed + struct.pack("=I", 0) + _NO_COOKIE


def _number(answer: bytes) -> int:
    size, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        return 0
    attributes = answer[_HEADER.size + _MESSAGE_BYTES : size]
    while len(attributes) >= 4:
        length, name = struct.unpack_from("=HH", attributes)
        if length < 4:
            return 0
        if name == _CGROUP_ID:
            return int.from_bytes(attributes[4:length], "little" if struct.pack("=H", 1)[0] else "big")
        attributes = attributes[(length + 3) & ~3 :]
    return 0
