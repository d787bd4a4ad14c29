"""The numbers that the HTTP layer obeys: how large, how many, how long. It decides nothing."""

from gpud.core.record import Record

READ_BYTES = 128 << 10
"""What is read at once. All connections of a server or a pool share one buffer of this size."""

BUFFER_BYTES = 64 << 10
"""How much may wait on one connection, in each direction, before whoever sends it is made to wait."""

HELD_BYTES = 128 << 10
"""How much of a body may wait to be taken before its sender is made to wait: what most are, whole."""

LARGEST_CHUNK_LINE_BYTES = 256
"""A chunk's size with its extensions. Nobody uses extensions; long ones are there to make servers work for nothing."""

LARGEST_TRAILER_BYTES = 8 << 10
"""Trailers are read and dropped."""


class HeadLimits(Record):
    """How large the head of a message may be. Past the first it is 414, past the others 431."""

    target_bytes: int = 16 << 10
    header_bytes: int = 64 << 10
    fields: int = 100


class ServerLimits(Record):
    """What a server grants its clients.

    ``connections`` in all; when there are as many, the one that has been idle for longest makes room for a new one, and
    if none is idle the new one is told 503. ``per_peer`` counts those of one address (of IPv6: of one /64), or of one
    user on a Unix socket;
    loopback addresses are exempt, because everybody on the machine shares them, and so is root.

    ``handshakes`` of TLS at once are made for each address that it listens on; who comes then waits to be accepted.

    ``header_s`` bounds a header from its first byte (or from the connection on) to its last. A body, and a reply that
    is being read, may take as long as they like while within every ``body_s`` or ``stall_s`` at least
    ``progress_bytes`` come through. ``idle_s`` is how long a connection is kept for a next request. After a refusal the
    rest of what the client sends is thrown away for up to ``linger_s``, so that it can read the refusal.
    """

    head: HeadLimits = HeadLimits()
    connections: int = 2048
    per_peer: int = 512
    handshakes: int = 64
    header_s: float = 10.0
    body_s: float = 30.0
    stall_s: float = 60.0
    idle_s: float = 75.0
    linger_s: float = 5.0
    progress_bytes: int = 1024


class ClientLimits(Record):
    """How engines are reached.

    ``connect_s`` bounds a connect, ``header_s`` the wait for the header of the answer, ``stall_s`` the time in which
    nothing of a body that was begun comes, or nothing of ours is taken. None: as long as it takes; a model may think
    for minutes before its first word. ``idle`` connections are kept for each engine, each for ``idle_s``.
    """

    head: HeadLimits = HeadLimits()
    connect_s: float = 5.0
    header_s: float | None = None
    stall_s: float | None = None
    idle: int = 32
    idle_s: float = 4.0
