"""People log in to a real Debian, work, and leave in every way there is: what only they used goes with them."""

import json
import os
import re
import signal
from typing import Any

import pytest
from booted_machine import Machine
from dbus.terminals import Terminal
from logins import ASK, HOLD, HOLDS, LIST, load, login, sessions, wait_shells, wait_state

pytestmark = pytest.mark.booted


def by_exit(_machine: Machine, shell: Terminal) -> None:
    shell.type("exit")


def by_a_dropped_connection(_machine: Machine, shell: Terminal) -> None:
    """The other end is gone without a word, as with a laptop that is shut: here its process."""
    os.kill(shell.pid, signal.SIGKILL)


def by_kill(machine: Machine, _shell: Terminal) -> None:
    for one in sessions(machine):
        if one["Uid"] == int(machine.run("id -u carla").out):
            machine.run(f"kill -9 {one['Pid']}")


@pytest.mark.parametrize("leave", [by_exit, by_a_dropped_connection, by_kill])
def test_what_only_carla_used_goes_with_her(quiet: Machine, leave: Any) -> None:
    """Fay, who has logged in as well, keeps hers."""
    with login(quiet, "carla") as carla, login(quiet, "fay") as fay:
        load(quiet, carla, "tiny")
        load(quiet, fay, "small")
        seen = {one["Caller"].split()[0]: one for one in sessions(quiet)}
        assert seen["bash"]["Alone"] == ["tiny"]
        assert seen["fish"]["Alone"] == ["small"]
        known = quiet.run("loginctl --no-legend list-sessions | awk '{print $1}'").out.split()
        assert {seen["bash"]["Login"], seen["fish"]["Login"]} <= set(known)
        leave(quiet, carla)
        wait_state(quiet, "tiny", "unloaded")
        assert quiet.states()["small"] == "ready"
    wait_state(quiet, "small", "unloaded")


def test_what_was_asked_by_http_goes_too(quiet: Machine) -> None:
    """curl knows nothing of gpud, the kernel knows whose curl it was; nobody needs a permission for that."""
    with login(quiet, "zoe") as zoe:
        zoe.run(ASK)
        wait_state(quiet, "tiny", "ready")
        assert [one["Alone"] for one in sessions(quiet)] == [["tiny"]]
        zoe.type("exit")
        wait_state(quiet, "tiny", "unloaded")
    entry = quiet.entries("--unit=gpud GPUD_KIND=session-ended --lines=1")[0]
    assert re.match(r"The session of zsh \(pid \d+\) has ended .*nobody else has used \"tiny\"", entry["MESSAGE"])


def test_what_a_service_used_stays(quiet: Machine) -> None:
    """A request from elsewhere is somebody's use."""
    with login(quiet, "carla") as carla:
        carla.run(ASK)
        wait_state(quiet, "tiny", "ready")
        quiet.run(f"systemd-run --quiet --wait {ASK.replace('curl', '/usr/bin/curl', 1)}")
        assert [(one["Used"], one["Alone"]) for one in sessions(quiet)] == [(["tiny"], [])]
    load_again = quiet.run("sleep 1; gpudctl status tiny --json").out
    assert '"ready"' in load_again


def test_under_sudo_it_is_the_users_session(quiet: Machine) -> None:
    """Root's shell belongs to the one that asked for it, and what it loads goes when that one ends."""
    with login(quiet, "carla") as carla:
        carla.run("sudo gpudctl load tiny")
        carla.type("sudo -i")
        carla.run("gpudctl load small")
        wait_state(quiet, "small", "ready")
        (one,) = sessions(quiet)
        assert one["Alone"] == ["small", "tiny"]
        carla.type("exit")
        # What is typed before her own shell asks for it may be root's.
        carla.read_until(r"logout\n[^\n]*carla@[^\n]*\$ ")
        carla.run("true")
        assert quiet.states()["small"] == "ready"
        carla.type("exit")
        wait_state(quiet, "small", "unloaded")
        wait_state(quiet, "tiny", "unloaded")


def test_in_tmux_it_outlives_the_login(quiet: Machine) -> None:
    """A detached terminal is somebody at work, whatever logind says of the login that it came from."""
    with login(quiet, "carla") as carla:
        carla.run("tmux new-session -d -s work")
        wait_shells(quiet, 2)
        carla.run("tmux send-keys -t work 'gpudctl load tiny' Enter")
        wait_state(quiet, "tiny", "ready")
        carla.type("exit")
        wait_shells(quiet, 1)
    (left,) = sessions(quiet)
    assert left["Alone"] == ["tiny"]
    assert quiet.run("sleep 1; gpudctl status tiny --json | grep -c '\"ready\"'").out != "0"
    quiet.run("tmux -S /tmp/tmux-$(id -u)/default kill-server", user="carla")
    wait_state(quiet, "tiny", "unloaded")


def test_in_screen_it_outlives_the_login(quiet: Machine) -> None:
    """Its shells are no login shells: the hook is in their own file, as the documentation says."""
    quiet.run("echo '. /usr/share/gpud/hooks/gpud.sh' >/home/carla/.bashrc")
    try:
        with login(quiet, "carla") as carla:
            carla.run("screen -dmS work")
            wait_shells(quiet, 2)
            carla.run("screen -S work -X stuff 'gpudctl load tiny^M'")
            wait_state(quiet, "tiny", "ready")
            carla.type("exit")
            wait_shells(quiet, 1)
        (left,) = sessions(quiet)
        assert left["Alone"] == ["tiny"]
        # Somebody comes back to it, works there, and leaves again.
        with login(quiet, "carla") as again:
            again.type("TERM=vt100 screen -r work")
            attached = "runuser -u carla -- screen -ls | grep -q Attached"
            quiet.wait("the screen on the second login", attached)
            again.type("gpudctl load small")
            wait_state(quiet, "small", "ready")
            assert {one["Pid"]: one["Alone"] for one in sessions(quiet)}[left["Pid"]] == ["small", "tiny"]
        wait_shells(quiet, 1)
        assert quiet.states()["tiny"] == quiet.states()["small"] == "ready"
        quiet.run("screen -S work -X quit", user="carla")
        wait_state(quiet, "tiny", "unloaded")
        wait_state(quiet, "small", "unloaded")
    finally:
        quiet.run("rm /home/carla/.bashrc; runuser -u carla -- screen -wipe", check=False)


def test_what_takes_the_shells_place_is_the_session(quiet: Machine) -> None:
    """exec of another program: the process goes on, and with it the session; the model goes when that program ends."""
    with login(quiet, "carla") as carla:
        load(quiet, carla, "tiny")
        carla.run(HOLD)
        (before,) = sessions(quiet)
        carla.type("exec cat")
        quiet.wait("the other program", f"test $(cat /proc/{before['Pid']}/comm) = cat")
        (after,) = sessions(quiet)
        assert (after["Id"], after["Alone"], after["Holds"]) == (before["Id"], ["tiny"], 1)
        carla.type("\x04")
        wait_state(quiet, "tiny", "unloaded")
    assert json.loads(quiet.run(HOLDS).out)["data"] == []


def test_a_killed_gpud_knows_them_again(quiet: Machine) -> None:
    """kill -9: the model is taken over, and so is who used it; whoever left meanwhile is missed."""
    with login(quiet, "carla") as carla, login(quiet, "fay") as fay:
        load(quiet, carla, "tiny")
        load(quiet, fay, "small")
        before = {one["Id"]: one["Alone"] for one in sessions(quiet)}
        old = quiet.main_pid()
        fay_pid = next(one["Pid"] for one in sessions(quiet) if one["Alone"] == ["small"])
        quiet.run(f"kill -STOP {old}; kill -9 {fay_pid}; kill -9 {old}")
        quiet.wait("the next gpud", f"test $(systemctl show --value -p MainPID gpud) != {old} && {LIST}")
        wait_state(quiet, "small", "unloaded")
        (after,) = sessions(quiet)
        assert before[after["Id"]] == after["Alone"] == ["tiny"]
        assert quiet.states()["tiny"] == "ready"
        carla.type("exit")
        wait_state(quiet, "tiny", "unloaded")


def test_a_killed_logind_ends_nobodys_session(quiet: Machine) -> None:
    """It comes back and finds its sessions; the shells' processes count meanwhile."""
    with login(quiet, "carla") as carla:
        load(quiet, carla, "tiny")
        carla.run(HOLD)
        old = quiet.show("systemd-logind", "MainPID")
        quiet.run(f"kill -9 {old}")
        quiet.wait(
            "logind again",
            f"systemctl is-active systemd-logind && test $(systemctl show --value -p MainPID systemd-logind) != {old}",
        )
        (one,) = sessions(quiet)
        assert (one["Alone"], one["Holds"]) == (["tiny"], 1)
        carla.type("exit")
        wait_state(quiet, "tiny", "unloaded")


def test_a_console_login_counts_as_well(quiet: Machine) -> None:
    """login(1) with PAM, as on a text console; what is held is let go of when the terminal is closed."""
    # Debian 13's login wants a terminal of this machine, and throws away what was typed before it.
    terminal = Terminal(quiet.command("script", "--quiet", "--command", "exec login -f carla", "/dev/null"), "")
    try:
        terminal.read_until(r"\$ ")
        terminal.run("true")
        quiet.wait("carla at work", f"{LIST} | grep -q Pid")
        terminal.run(HOLD)
        (one,) = sessions(quiet)
        assert one["Holds"] == 1
        terminal.close()
        quiet.wait("nobody at work", f"! {LIST} | grep -q Pid")
        assert json.loads(quiet.run(HOLDS).out)["data"] == []
    finally:
        terminal.end()


def test_the_commands_with_old_names_are_there(quiet: Machine) -> None:
    """As they are typed, on the real doors."""
    quiet.run("gpudctl load tiny")
    assert [one["name"] for one in json.loads(quiet.run("ollama-status").out)["models"]] == ["tiny:latest"]
    assert re.fullmatch(r"unloaded 1 model, freed \d+ MiB", quiet.run("ollama-unload").out)
    assert quiet.run("ollama-unload").out == "nothing loaded"
    assert json.loads(quiet.run("ml-models").out)
    # Where the unit of that name is installed it may have been stopped; without it gpud's own is shown.
    quiet.run("systemctl start ml-offload-api", check=False)
    assert "active (running)" in quiet.run("ml-offload-api --no-pager").out
    assert quiet.run("ml-vram-status").out
