"""gpud beside the real logind: the machine waits for it before it sleeps or shuts down."""

import pytest
from booted_machine import Machine

pytestmark = pytest.mark.booted

LOCKS = "systemd-inhibit --list --no-legend --no-pager | grep -w gpud | grep -w delay"


def locks(machine: Machine) -> list[str]:
    """What the machine waits for gpud with."""
    lines = machine.run(LOCKS, check=False).out.splitlines()
    return sorted(what for line in lines for what in ("shutdown", "sleep") if f" {what} " in line)


def both(machine: Machine) -> None:
    machine.wait("both locks", f"test $({LOCKS} | wc -l) = 2")
    assert locks(machine) == ["shutdown", "sleep"]


def test_the_machine_waits_for_gpud(machine: Machine) -> None:
    """A service without any right may hold both locks, one each; no engine has one."""
    both(machine)
    machine.load("tiny")
    machine.run("systemctl kill --kill-whom=main --signal=KILL gpud")
    machine.wait("another gpud", "gpudctl status")
    both(machine)


def test_a_restarted_logind_waits_as_well(machine: Machine) -> None:
    """gpud hears that it is there, and takes the locks anew."""
    both(machine)
    machine.run("systemctl restart systemd-logind")
    both(machine)


def test_a_stopped_gpud_is_not_waited_for(machine: Machine) -> None:
    """The locks end with it."""
    both(machine)
    machine.run("systemctl stop gpud")
    try:
        # logind answers whoever asks before it looks who has let go.
        machine.wait("no lock", f"! {LOCKS}")
    finally:
        machine.run("systemctl start gpud")


def test_the_module_for_cuda_is_loaded_anew_where_that_is_wanted(machine: Machine) -> None:
    """The unit is sound, its program is there, and it is run after each kind of sleep once it has been enabled."""
    unit = "gpud-uvm-reload.service"
    machine.run(f"systemd-analyze verify /usr/lib/systemd/system/{unit}")
    machine.run("test -x /usr/lib/gpud/uvm-reload")
    assert machine.show(unit, "SuccessExitStatus") == "75"
    machine.run(f"systemctl enable {unit}")
    try:
        for sleep in ("suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate"):
            assert unit in machine.show(f"{sleep}.target", "Wants").split()
    finally:
        machine.run(f"systemctl disable {unit}")
