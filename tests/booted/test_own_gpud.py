"""gpud for one user on a real Debian: a login of their own, the session bus, and the machine's gpud beside it."""

from collections.abc import Iterator

import pytest
from booted_machine import Machine, Result
from logins import pam_login

pytestmark = pytest.mark.booted

CONFIGURATION = """\
models:
  tiny: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/tiny.gguf, threads: 1}
http:
  front: {port: 18080}
  management: {port: 19000}
  ollama: {enable: false}
"""

BESIDE = """\
[Service]
ExecStart=
ExecStart=/opt/gpud/bin/gpud --user --beside-system
"""

UNITS = "/home/anna/.config/systemd/user"


class Anna:
    """A user who logs in through PAM for every line."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, script: str, *, check: bool = True) -> Result:
        line = f"export DBUS_SESSION_BUS_ADDRESS=unix:path=$XDG_RUNTIME_DIR/bus; {script}"
        return self.machine.run(pam_login("anna", line), check=check)


@pytest.fixture
def anna(machine: Machine) -> Iterator[Anna]:
    """She has a configuration and stays for the time of the test, as with a session that is open."""
    machine.run("id anna || useradd --create-home --shell /bin/bash anna")
    machine.run(f"mkdir -p ~/.config/gpud && cat >~/.config/gpud/gpud.yaml <<'X'\n{CONFIGURATION}X\n", user="anna")
    machine.run("loginctl enable-linger anna")
    machine.wait("her service manager", "systemctl is-active user@$(id -u anna)")
    her = Anna(machine)
    try:
        yield her
    finally:
        her.run("systemctl --user disable --now gpud; systemctl --user stop llama-cpp-server", check=False)
        machine.run(f"rm -rf {UNITS}; loginctl disable-linger anna")
        machine.wait("the end of her service manager", "! systemctl is-active user@$(id -u anna)")
        machine.run("systemctl enable --now gpud")


def test_it_defers_to_the_gpud_of_the_machine(anna: Anna) -> None:
    """It starts neither beside one that runs nor beside one that is enabled, is tried once, and says what to do."""
    for how in ("runs as process [0-9]*,", "is started at boot (gpud.service is enabled),"):
        refused = anna.run("systemctl --user start gpud", check=False)
        assert refused.code != 0
        show = "systemctl --user show gpud --property="
        assert anna.run(f"{show}ExecMainStatus,NRestarts,ActiveState").out.splitlines() == [
            "NRestarts=0",
            "ExecMainStatus=75",
            "ActiveState=failed",
        ]
        journal = "journalctl --no-pager --quiet --output=cat _SYSTEMD_USER_UNIT=gpud.service --lines=20"
        anna.machine.wait("its words", f"{journal} | grep -q 'a gpud for the whole machine {how}.*gpudctl --system'")
        anna.run("systemctl --user reset-failed gpud")
        anna.machine.run("systemctl stop gpud")


def test_it_runs_where_the_machine_has_none(anna: Anna) -> None:
    """Enabled and started as the documentation says: on the session bus, with her directories and her models."""
    anna.machine.run("systemctl disable --now gpud")
    anna.run("systemctl --user enable --now gpud")
    anna.run("gpudctl --user load tiny")
    assert anna.run("gpudctl models --loaded").out == "tiny", "without --user it is found, too"
    assert anna.run("systemctl --user show gpud --property=StatusText --value").out == "ready: tiny"
    assert anna.run("stat -c '%U %a' $XDG_RUNTIME_DIR/gpud ~/.local/state/gpud").out.splitlines()[0] == "anna 700"
    anna.machine.run("pgrep --uid anna --full 'alias tiny ' && ! pgrep --uid gpud --full 'alias tiny '")
    refused = anna.machine.run(
        "XDG_RUNTIME_DIR=/run/user/$(id -u anna) runuser -u nobody -- gpudctl --user status", check=False
    )
    assert refused.code != 0
    # A login that ends does not end it: she lingers. Without that it ends with her last session.
    assert anna.run("gpudctl models --loaded").out == "tiny"
    anna.machine.run("loginctl disable-linger anna")
    anna.machine.wait("its end", "! pgrep --uid anna --full gpud")
    anna.machine.run("loginctl enable-linger anna")
    anna.machine.wait("its start with her service manager", "pgrep --uid anna --full 'gpud --user'")


def test_it_needs_nothing_but_to_be_enabled(anna: Anna) -> None:
    """No root and no configuration: it serves what it finds, on the session bus, in directories of hers; its journal
    goes on while one looks; each engine is in a control group of its own, so that all of it ends with it.
    """
    anna.machine.run("systemctl disable --now gpud")
    anna.run("rm ~/.config/gpud/gpud.yaml")
    anna.run("systemctl --user enable --now gpud")
    call = "busctl --user --json=short call org.kernelcore.GpuD /org/kernelcore/GpuD org.kernelcore.GpuD"
    # It is ready before it has looked through all folders.
    anna.run(f"until {call} ListModels | grep -qF '\"tiny\"'; do sleep 0.1; done")
    anna.run("gpudctl load tiny")
    assert "on the session bus: active" in anna.run("gpudctl status").out
    followed = anna.run("timeout 5 journalctl --no-pager --user -u gpud -f", check=False)
    assert followed.code == 124, "it goes on"
    assert '"tiny" is ready' in followed.out
    groups = "cat /sys/fs/cgroup$(systemctl --user show gpud -P ControlGroup)/engine-tiny-*/cgroup.procs"
    assert anna.run(groups).out == anna.run("pgrep --full '[a]lias tiny '").out
    assert anna.run("gpudctl doctor | grep -c 'OK daemon: gpud runs'").out == "1"


def test_both_run_where_somebody_says_so(anna: Anna) -> None:
    """A drop-in with --beside-system; each has its own models and its own bus."""
    anna.run(f"mkdir -p {UNITS}/gpud.service.d && cat >{UNITS}/gpud.service.d/both.conf <<'X'\n{BESIDE}X\n")
    anna.run("systemctl --user daemon-reload && systemctl --user start gpud")
    anna.run("gpudctl --user load tiny")
    assert anna.run("gpudctl --user models --loaded").out == "tiny"
    assert anna.run("gpudctl --system models --loaded").out == ""


@pytest.fixture(scope="module")
def old_name(installed: Machine) -> str:
    """The unit that users had, installed for all of them."""
    installed.run("make --directory=/src install WHEELS=/wheels FACADES=llama-cpp-server", timeout_s=300)
    return "llama-cpp-server"


@pytest.mark.usefixtures("old_name")
def test_the_old_name_of_a_users_unit_shows_its_engine(anna: Anna) -> None:
    """``systemctl --user status llama-cpp-server`` does for her what llamacpp does for the machine."""
    anna.machine.run("systemctl disable --now gpud")
    anna.run("systemctl --user daemon-reload && systemctl --user start gpud llama-cpp-server")
    anna.run("gpudctl --user load tiny")
    status = "systemctl --user show llama-cpp-server --property=StatusText --value"
    anna.run(f"until {status} | grep -E '^ready: tiny [0-9]+ MiB$'; do sleep 0.1; done")
    anna.run("systemctl --user stop llama-cpp-server")
    refused = anna.run("gpudctl --user load tiny", check=False)
    assert '"llama-cpp-server.service" was stopped' in refused.err
    anna.run("systemctl --user start llama-cpp-server && gpudctl --user wait tiny")


def test_the_lines_of_the_old_documents_work_for_a_user(anna: Anna, old_name: str) -> None:
    """start, stop, restart, status, enable, disable and is-active of llama-cpp-server, its journal, and who listens."""
    unit = old_name
    anna.machine.run("systemctl disable --now gpud")
    anna.run(f"systemctl --user daemon-reload && systemctl --user start {unit} && gpudctl --user load tiny")
    assert anna.run(f"systemctl --user is-active {unit} gpud").out.split() == ["active", "active"]
    assert "Active: active (running)" in anna.run(f"systemctl --user --no-pager status {unit}").out
    lines = f"journalctl --user --no-pager -u {unit}"
    for how in ("-n 100", "-b", "--since '1 hour ago'"):
        anna.run(f"until {lines} {how} | grep -q model.loaded; do sleep 0.1; done")
    followed = anna.run(f"timeout 5 {lines} -f", check=False)
    assert followed.code == 124, "it goes on"
    assert followed.out, "and begins with what was there"
    before = anna.run("pgrep --full 'alias tiny '").out
    anna.run(f"systemctl --user restart {unit} && gpudctl --user wait tiny")
    assert anna.run("pgrep --full 'alias tiny '").out not in ("", before)
    anna.run(f"systemctl --user enable {unit}")
    assert anna.run(f"systemctl --user is-enabled {unit}").out == "enabled"
    anna.run(f"systemctl --user disable {unit}")
    assert anna.run(f"systemctl --user is-enabled {unit}", check=False).out == "disabled"
    assert anna.run(f"systemctl --user is-active {unit}").out == "active", "that is for the next login"
    # The door of her gpud, and the process that has it, by its name and by its unit.
    pid = anna.run("systemctl --user show gpud --property=MainPID --value").out
    inode = anna.run("""awk '$2 ~ /:46A0$/ && $4 == "0A" { print $10 }' /proc/net/tcp""").out
    assert f"socket:[{inode}]" in anna.run(f"ls -l /proc/{pid}/fd").out, "18080 is hers"
    assert pid in anna.run("pgrep -x gpud").out.split()
    anna.run(f"systemctl --user stop {unit}")
    assert anna.run("gpudctl --user models --loaded").out == ""
    assert anna.run(f"systemctl --user is-active {unit}", check=False).out == "inactive"
    anna.run(f"systemctl --user start {unit} && gpudctl --user wait tiny")
