"""What people do from day to day on a real machine, as they type it, where that takes logins, a journal and a disk."""

import contextlib
import re
from collections.abc import Iterator

import pytest
from booted_machine import Machine
from logins import load, login, sessions, wait_state

pytestmark = pytest.mark.booted

STORE = "/var/lib/ml-models"
MONITOR = "/run/systemd/system/ml-storage-monitor.service.d"


def test_the_terminal_is_closed(quiet: Machine) -> None:
    """What only that shell used is unloaded, another login keeps its own, and the user's own trap is run; a connection
    that drops does the same.
    """
    with login(quiet, "fay") as fay:
        load(quiet, fay, "small")
        with login(quiet, "carla") as carla:
            carla.run("trap 'echo mi''ne' EXIT")
            load(quiet, carla, "tiny")
            carla.type("exit")
            carla.read_until("\nmine")
            wait_state(quiet, "tiny", "unloaded")
        with login(quiet, "carla") as carla:
            load(quiet, carla, "tiny")
            assert {tuple(one["Alone"]) for one in sessions(quiet)} == {("tiny",), ("small",)}
            carla.close()
            wait_state(quiet, "tiny", "unloaded")
        assert quiet.states()["small"] == "ready"


def test_somebody_walks_away_from_a_chat(machine: Machine) -> None:
    """After its idle time the model is gone, and the journal says why, and how much that gave back."""
    began = machine.now()
    machine.load("tiny")
    machine.call("SetIdleTimeout", "t", "300000")
    try:
        machine.run("gpudctl wait --state unloaded --timeout 120s tiny")
    finally:
        machine.run("systemctl reload gpud")
    machine.run("journalctl --sync")
    lines = machine.run(f"journalctl --no-pager -u gpud --since {began} | grep idle").out
    assert re.search(r'"tiny" has been idle for \d+ s and is unloaded', lines), lines
    assert re.search(r'"tiny" is unloaded, \d+ MiB given back: it was idle', lines), lines


@contextlib.contextmanager
def small_disk(machine: Machine) -> Iterator[None]:
    """The cache is on one of 4 MiB, and the weekly look at the disk looks there, for 2 MiB."""
    look = f"/usr/bin/gpudctl storage check --fail --least 2MiB --base {STORE}/cache"
    machine.run(f"mount -t tmpfs -o size=4m,mode=755 tmpfs {STORE}/cache")
    machine.run(f"mkdir -p {MONITOR} && printf '[Service]\\nExecStart=\\nExecStart={look}\\n' >{MONITOR}/small.conf")
    machine.run("systemctl daemon-reload")
    try:
        yield
    finally:
        machine.run(f"rm -r {MONITOR}; umount {STORE}/cache; systemctl daemon-reload")
        machine.run("systemctl reset-failed ml-storage-monitor", check=False)


def test_the_disk_is_full(machine: Machine) -> None:
    """The weekly look says so with the number and what to do, the commands show what takes the room and empty the
    cache, and the next look is content.
    """
    with small_disk(machine):
        machine.run(f"mkdir {STORE}/cache/parts; head -c 3M /dev/zero >{STORE}/cache/parts/model.part")
        assert machine.run("systemctl start ml-storage-monitor", check=False).code != 0
        status = machine.run("systemctl --no-pager status ml-storage-monitor", check=False).out
        assert "ML models storage low: 0GB remaining" in status
        assert "gpudctl storage clean-cache" in status
        assert machine.entries("--identifier=ml-storage --priority=warning --lines=1")
        assert "cache/" in machine.run("ml-ls").out
        for somebody in ("root", "nobody"):
            used = machine.run("ml-du", user=somebody).out
            assert re.search(rf"^ *3 MiB +{STORE}/cache$", used, re.M), used
        assert machine.run("ml-clean-cache --yes").out == f"removed 1 file below {STORE}/cache: 3 MiB freed"
        machine.run("systemctl start ml-storage-monitor")
        assert machine.show("ml-storage-monitor", "Result") == "success"
