"""Lets polkit ask for a password in this terminal, where no desktop would show a dialog: over SSH, on a console."""

import os
import select
import shutil
import subprocess

READY_S = 3.0
"""For the agent to register with polkit; without it polkit refuses what it would have asked about."""


def start() -> subprocess.Popen[bytes] | None:
    """polkit's own agent for this process, registered and ready; None where there is none to be had.

    It steps back where the session has an agent already, and ends when it is told to by :func:`stop`.
    """
    program = shutil.which("pkttyagent")
    if program is None:
        return None
    ours, theirs = os.pipe()
    command = [program, "--process", str(os.getpid()), "--notify-fd", str(theirs), "--fallback"]
    try:
        agent = subprocess.Popen(command, pass_fds=[theirs])
    except OSError:
        os.close(theirs)
        os.close(ours)
        return None
    os.close(theirs)
    # It closes its end once it is registered, and also when it could not be.
    select.select([ours], [], [], READY_S)
    os.close(ours)
    return agent


def stop(agent: subprocess.Popen[bytes]) -> None:
    agent.terminate()
    try:
        agent.wait(READY_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
