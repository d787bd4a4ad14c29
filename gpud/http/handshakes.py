"""Accepts clients that speak TLS. Only so many at once may be in the middle of their handshake: it costs memory and
work before anybody is counted or known, so whoever is one more waits in the kernel's queue, and is not accepted yet.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 1.0
"""How long nobody is accepted after that has failed: the descriptors or the memory have run out, and asking again at
once would take what is left of the processor."""


class TlsListener:
    """One listening socket. ``make`` makes the protocol that an encrypted connection is handed to."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        context: "ssl.SSLContext",
        *,
        handshake_s: float,
        at_once: int,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._make = make
        self._context = context
        self._handshake_s = handshake_s
        self._slots = asyncio.Semaphore(at_once)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name="accept-tls")
        # Not before: the loop watches it until then.
        self._accepting.add_done_callback(lambda _: sock.close())

    def close(self) -> None:
        """Accept nobody else; who is in the middle of a handshake may go on."""
        self._accepting.cancel()

    async def ended(self) -> None:
        """Accept nobody else, and end what is in the middle of a handshake. Returns when nothing of it is left."""
        self.close()
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.wait((self._accepting, *self._handshakes))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                client, _ = await loop.sock_accept(self._sock)
            except OSError as problem:
                self._slots.release()
                log.warning("Cannot accept a client that speaks TLS: %s; tried again in %g s", problem, ACCEPT_AGAIN_S)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            handshake = loop.create_task(self._shake(client), name="handshake")
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake(self, client: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, client, ssl=self._context, ssl_handshake_timeout=self._handshake_s
            )
        except OSError as problem:
            # A port scan, plain HTTP, one that does not trust the certificate, that has left, or waits for ever.
            log.debug("A client came as far as its handshake: %s", problem)
        finally:
            self._slots.release()
