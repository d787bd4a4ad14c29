"""Which machine a request was meant for, and which web page sent it: reads ``Host`` and ``Origin``, decides nothing."""

import ipaddress
import re
from collections.abc import Iterable

_PARTS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?")
_LABELS = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)")
_WEB = re.compile(r"(https?)://([^/?#@]+)")

_DEFAULT_PORTS = {"http": 80, "https": 443}

_REMEMBERED = 256
"""Different texts of Host whose answer is kept: real clients send the same few."""


def canonical(host: str) -> str:
    """A name or an address without brackets, in the one way to write it; empty: it is neither.

    ``LOCALHOST.`` is localhost, ``::ffff:127.0.0.1`` is 127.0.0.1. What ends in a number and is no plain address
    (``127.1``, ``0x7f000001``) is nothing: some resolvers take it for an address, and no browser sends it.
    """
    text = host.lower().removesuffix(".")
    if ":" in text or _ENDS_IN_A_NUMBER.fullmatch(text):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return ""
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address)
    return text if len(text) <= 253 and _LABELS.fullmatch(text) else ""


def split(authority: str) -> tuple[str, int | None] | None:
    """The canonical host and the port of ``localhost:8080`` or ``[::1]``; None: it is not a host."""
    match = _PARTS.fullmatch(authority)
    if match is None:
        return None
    text, port = match[1], match[2]
    is_bracketed = text[0] == "["
    if is_bracketed and ":" not in text:
        return None
    host = canonical(text[1:-1] if is_bracketed else text)
    if not host or (port is not None and not 1 <= int(port) <= 65535):
        return None
    return host, None if port is None else int(port)


def is_own_origin(origin: str, host: str) -> bool:
    """Whether the page comes from where the request went; by whichever scheme, for a proxy may have ended the TLS."""
    match = _WEB.fullmatch(origin)
    if match is None:
        return False
    page, went = split(match[2]), split(host)
    if page is None or went is None or page[0] != went[0]:
        return False
    default = _DEFAULT_PORTS[match[1]]
    return (page[1] or default) == (went[1] or default)


class HostList:
    """The hosts that a door answers to: this machine's loopback names, where it listens, and what is configured.

    A door that listens on every address answers to every address: a stranger's page can reach us by a name that it has
    pointed here, never by an address.
    """

    def __init__(self, addresses: Iterable[str], names: Iterable[str]) -> None:
        known = {canonical(each.removeprefix("[").removesuffix("]")) for each in (*addresses, *names)}
        self._any_address = bool(known & {"0.0.0.0", "::"})  # noqa: S104 - to see it, not to listen there
        self._known = known - {"", "0.0.0.0", "::"} | {"localhost"}  # noqa: S104
        self._answers: dict[str, bool] = {}

    def has(self, host: str) -> bool:
        """Whether ``Host`` with this value is one of them. Its port is not looked at: a port may be forwarded."""
        answer = self._answers.get(host)
        if answer is None:
            answer = self._look(host)
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            if len(host) <= 300:
                self._answers[host] = answer
        return answer

    def _look(self, host: str) -> bool:
        parts = split(host)
        if parts is None:
            return False
        if parts[0] in self._known:
            return True
        try:
            address = ipaddress.ip_address(parts[0])
        except ValueError:
            return False
        return address.is_loopback or (self._any_address and not address.is_unspecified)
