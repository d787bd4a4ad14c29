"""People who log in to the machine, by SSH on terminals of their own or through PAM for a line, and what gpud says of
them.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

from booted_machine import Machine
from dbus.terminals import Terminal

SETTINGS = "/etc/gpud/gpud.d/sessions.yaml"
RULES = "/etc/polkit-1/rules.d/50-gpud.rules"
SESSION = "export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus;"
"""What a line of shell begins with that is to reach the session of somebody who has not logged in for it."""

SSH = "ssh -tt -q -i /root/gpud-test-key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
GPUD = "org.kernelcore.GpuD /org/kernelcore/GpuD org.kernelcore.GpuD"
LIST = f"busctl --json=short call {GPUD} ListSessions"
HOLDS = f"busctl --json=short get-property {GPUD} Holds"
HOLD = f"busctl call {GPUD} HoldSession ss tiny work"
QUESTION = '{"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'
ASK = f"curl -s -o /dev/null 127.0.0.1:8080/v1/chat/completions -d '{QUESTION}'"


@contextlib.contextmanager
def login(machine: Machine, name: str) -> Iterator[Terminal]:
    """By SSH, on a terminal; the shell has registered."""
    terminal = Terminal(machine.command(*SSH.split(), f"{name}@127.0.0.1"), "")
    try:
        terminal.run("true")
        uid = machine.run(f"id -u {name}").out
        machine.wait(f"{name} at work", f'{LIST} | grep -q \'"Uid":{{"type":"u","data":{uid}}}\'')
        yield terminal
    finally:
        terminal.end()


def pam_login(name: str, script: str, *options: str) -> str:
    """A line of shell with a login of its own around it; ``options`` of systemd-run."""
    run = "systemd-run --quiet --wait --collect --pipe --property=PAMName=login"
    return " ".join([run, f"--property=User={name}", *options, f"bash -c {shlex.quote(script)}"])


def wait_owned(machine: Machine, user: str, bus_name: str) -> None:
    """Until somebody on the user's session bus has the name."""
    ask = f"{SESSION} busctl --user status {bus_name}"
    machine.wait(f"{bus_name} of {user}", f"runuser -u {user} -- bash -c {shlex.quote(ask)}")


def wait_shells(machine: Machine, count: int) -> None:
    """Until gpud knows of so many shells in which somebody is at work."""
    machine.wait(f"{count} shells at work", f"test $({LIST} | grep -o '\"Pid\"' | wc -l) = {count}")


def sessions(machine: Machine) -> list[dict[str, Any]]:
    listed = json.loads(machine.run(LIST).out)["data"][0]
    return [{key: value["data"] for key, value in one.items()} for one in listed]


def wait_state(machine: Machine, model: str, state: str) -> None:
    machine.wait(f"{model} {state}", f"gpudctl status {model} --json | grep -q '\"{state}\"'")


def load(machine: Machine, shell: Terminal, model: str) -> None:
    shell.run(f"gpudctl load {model}")
    wait_state(machine, model, "ready")
