"""Accepts clients on a listening socket, in clear or with TLS. Whom it has accepted it does not lose, not even when the
socket is closed in the same moment. It never reads a request.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpud.http.listening import BACKLOG

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 1.0
"""How long nobody is accepted after that has failed: the descriptors or the memory have run out, and asking again at
once would take what is left of the processor."""


class Listener:
    """One listening socket. ``make`` makes the protocol that a client's connection is handed to.

    ``kept``: somebody else goes on listening there, and whoever waits is theirs when this is closed. How many may wait
    in the kernel stays as it is. ``at_once`` so many may be on their way in: a handshake of TLS costs memory and work
    before anybody is counted or known, and may take ``handshake_s``; who is one more is not accepted yet.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        *,
        kept: bool = False,
        context: "ssl.SSLContext | None" = None,
        handshake_s: float | None = None,
        at_once: int = BACKLOG,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._make = make
        self._kept = kept
        self._context = context
        self._handshake_s = handshake_s if context is not None else None
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._is_watching = False
        self._coming: set[asyncio.Task[None]] = set()
        self._watch()

    @property
    def coming(self) -> int:
        """How many are on their way in."""
        return len(self._coming)

    def close(self) -> None:
        """Accept nobody else; who has been accepted comes in. So does who waits for it, unless somebody else is there
        for them: the kernel would reset them.
        """
        if self._sock.fileno() < 0:
            return
        if not self._kept:
            self._accept()
        self._stop_watching()
        self._sock.close()

    async def settle(self, within_s: float) -> None:
        """Wait until whoever has been accepted is in, for so long."""
        if self._coming:
            await asyncio.wait(self._coming, timeout=within_s)

    async def ended(self) -> None:
        """Accept nobody else, and cut off who is on the way in. Returns when nothing of it is left."""
        self.close()
        for coming in self._coming:
            coming.cancel()
        if self._coming:
            await asyncio.wait(self._coming)

    def _watch(self) -> None:
        if not self._is_watching and self._sock.fileno() >= 0:
            self._stop_watching()
            self._is_watching = True
            self._loop.add_reader(self._sock, self._accept)

    def _stop_watching(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._is_watching:
            self._is_watching = False
            self._loop.remove_reader(self._sock)

    def _accept(self) -> None:
        """Take in who waits."""
        while len(self._coming) < self._at_once:
            try:
                client, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:
                log.warning("Cannot accept a client: %s; tried again in %g s", problem, ACCEPT_AGAIN_S)
                self._stop_watching()
                self._again = self._loop.call_later(ACCEPT_AGAIN_S, self._watch)
                return
            coming = self._loop.create_task(self._let_in(client), name="accepted")
            self._coming.add(coming)
            coming.add_done_callback(self._is_in)
        self._stop_watching()

    def _is_in(self, coming: "asyncio.Task[None]") -> None:
        self._coming.discard(coming)
        if self._again is None:
            self._watch()

    async def _let_in(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, client, ssl=self._context, ssl_handshake_timeout=self._handshake_s
            )
        except OSError as problem:
            # A port scan, plain HTTP where TLS is spoken, one that does not trust the certificate, that has left, or
            # waits for ever.
            log.debug("A client came no further than the door: %s", problem)
