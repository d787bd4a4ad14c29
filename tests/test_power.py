"""Whether the machine runs on its battery, by trees as sysfs has them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gpud.power import on_battery

Supply = Mapping[str, str]
LINE: Supply = {"type": "Mains", "online": "1"}
UNPLUGGED: Supply = {"type": "Mains", "online": "0"}


def battery(status: str, **more: str) -> Supply:
    return {"type": "Battery", "status": status, **more}


@pytest.mark.parametrize(
    ("supplies", "answer"),
    [
        ({}, False),
        ({"AC": LINE, "BAT0": battery("Charging")}, False),
        ({"AC": LINE, "BAT0": battery("Discharging")}, False),
        ({"AC": LINE, "BAT0": battery("Not charging")}, False),
        ({"AC": UNPLUGGED, "BAT0": battery("Discharging")}, True),
        ({"BAT0": battery("Discharging")}, True),
        ({"BAT0": battery("Full"), "BAT1": battery("Discharging")}, True),
        ({"BAT0": battery("Full")}, False),
        ({"BAT0": battery("Unknown")}, None),
        ({"BAT0": {"type": "Battery"}}, None),
        ({"AC": UNPLUGGED, "BAT0": battery("Discharging", present="0")}, False),
        ({"usb": {"type": "USB", "online": "1"}, "BAT0": battery("Charging")}, False),
        ({"usb": {"type": "USB", "online": "0"}, "BAT0": battery("Discharging")}, True),
        ({"AC": UNPLUGGED, "hidpp_battery_0": battery("Discharging", scope="Device")}, False),
        ({"wacom_ac": LINE | {"scope": "Device"}, "BAT0": battery("Discharging", scope="System")}, True),
        ({"ups": {"type": "UPS", "status": "Discharging"}}, False),
    ],
)
def test_what_feeds_the_machine(tmp_path: Path, supplies: dict[str, Supply], answer: bool | None) -> None:
    """Its own batteries count, and lines that are plugged in; peripherals, and a UPS, do not."""
    for name, properties in supplies.items():
        (tmp_path / name).mkdir()
        for key, value in properties.items():
            (tmp_path / name / key).write_text(value + "\n")
    assert on_battery(tmp_path) is answer


def test_a_machine_that_does_not_say(tmp_path: Path) -> None:
    """Without sysfs, nothing is known."""
    assert on_battery(tmp_path / "none") is None


def test_this_machine_is_asked() -> None:
    """The real directory can be read, whatever is in it."""
    assert on_battery() in (True, False, None)
