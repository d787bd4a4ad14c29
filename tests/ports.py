"""Ports for what a test starts a moment later, and nobody else takes meanwhile."""

import contextlib
import itertools
import os
import socket

FIRST, PER_WORKER, WORKERS = 12000, 1000, 20
"""Below those that the kernel gives to whoever asks for none in particular."""


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_SLICE = range(FIRST + _WORKER * PER_WORKER, FIRST + (_WORKER + 1) * PER_WORKER)
# Another run on this machine has the same slices: it begins elsewhere.
_TURNS = itertools.cycle((*_SLICE[os.getpid() % PER_WORKER :], *_SLICE[: os.getpid() % PER_WORKER]))


def free_port() -> int:
    """One that nobody listens on, that no other pytest-xdist worker of this run is given, and this one not for long."""
    while True:
        port = next(_TURNS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
