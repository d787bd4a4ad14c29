"""Ports for what a test starts a moment later, and nobody else takes meanwhile."""

import contextlib
import os
import random
import socket

FIRST, PER_WORKER, WORKERS = 12000, 1000, 20
"""Below those that the kernel gives to whoever asks for none in particular."""


def free_port() -> int:
    """One that nobody listens on, and that no other pytest-xdist worker of this run is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    first = FIRST + worker * PER_WORKER
    while True:
        port = random.randrange(first, first + PER_WORKER)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
