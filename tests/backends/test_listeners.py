"""Who listens at a port of this machine, as /proc tells."""

import os
import socket
from pathlib import Path

from gpud.backends.listeners import program_at


def test_the_program_that_listens_is_named() -> None:
    """By its name and its number."""
    name = Path("/proc/self/comm").read_text().strip()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as server:
            server.bind((host, 0))
            server.listen()
            assert program_at(server.getsockname()[1]) == f"{name} (process {os.getpid()})"


def test_nobody_listens_at_a_port_that_is_only_bound() -> None:
    """Then nobody is named."""
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        assert program_at(idle.getsockname()[1]) == ""
