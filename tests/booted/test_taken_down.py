"""What cannot be undone, last: the death of the system bus, and the uninstallation."""

import pytest
from booted_machine import Machine

pytestmark = pytest.mark.booted


def test_the_death_of_the_bus_is_survived(machine: Machine) -> None:
    """After ``kill -9`` of dbus-daemon gpud keeps its models and is on the new bus without having been restarted."""
    machine.load("tiny")
    before, pid = machine.engines(), machine.main_pid()
    machine.run("kill -9 $(systemctl show --value --property=MainPID dbus); systemctl start dbus")
    owner = "busctl --auto-start=no status org.kernelcore.GpuD"
    machine.wait("gpud on the new bus", f"{owner} | grep -qx PID={pid}")
    assert machine.engines() == before
    assert machine.states()["tiny"] == "ready"


def test_uninstalling_takes_all_of_it_away(machine: Machine) -> None:
    """Nothing of gpud runs or lies about afterwards, but the configuration, the models and the state."""
    # With systemd's sockets: a client that comes meanwhile must not start it again.
    machine.run("systemctl stop gpud && systemctl enable --now gpud-front.socket")
    machine.run("systemctl enable --now ml-storage-monitor.timer; systemctl enable gpud-uvm-reload")
    machine.run("systemctl --global enable gpud gpud-tray")
    machine.load("tiny", "stubborn")
    said = machine.run("make --directory=/src uninstall").out
    assert "Kept" in said
    assert machine.of_gpud() == []
    places = "/etc /opt /run /usr /var/lib /var/cache"
    # Pages that somebody has read are kept by man, which forgets those that are gone.
    formatted = "-not -path '/var/cache/man/*'"
    left = machine.run(
        f"find {places} -xdev -iname '*gpud*' -not -path '/run/systemd/*' {formatted} -prune"
    ).out.splitlines()
    assert set(left) == {"/etc/gpud", "/var/lib/gpud"}
    machine.run("test -s /etc/gpud/gpud.yaml && test -s /var/lib/ml-models/llamacpp/models/tiny.gguf")
    assert machine.run("find /etc/systemd -lname '*gpud*' -o -lname '*ml-storage*'").out == ""
    for unit in ("gpud.service", "gpud-front.socket", "ml-storage-monitor.timer"):
        assert machine.show(unit, "LoadState") == "not-found"
    assert machine.run("curl http://127.0.0.1:8080/health", check=False).code == 7
    assert "org.kernelcore" not in machine.run("busctl list --no-pager").out
    again = machine.run("make --directory=/src uninstall")
    assert again.code == 0
