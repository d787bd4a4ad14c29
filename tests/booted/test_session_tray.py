"""gpud-tray as a unit of a user's own systemd, in a session without a screen."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from booted_machine import TOP, Machine
from logins import RULES, SESSION, wait_owned

pytestmark = pytest.mark.booted

UNIT = "gpud-tray.service"

DROP_IN = """\
[Service]
ExecStart=
ExecStart=/opt/gpud/bin/gpud-tray --wait 0
"""

TRAY = """\
import asyncio
from dbus_next.aio.message_bus import MessageBus
from dbus_next.message import Message

async def main():
    bus = await MessageBus().connect()
    def take(message):
        if message.member == "RegisterStatusNotifierItem":
            print("icon", message.body[0], flush=True)
            return Message.new_method_return(message)
    bus.add_message_handler(take)
    await bus.request_name("org.kde.StatusNotifierWatcher")
    await bus.wait_for_disconnect()

asyncio.run(main())
"""


@pytest.fixture
def session(machine: Machine) -> Iterator[Machine]:
    """A user whose systemd runs, who may load and unload, and whose gpud-tray waits for no tray."""
    machine.run(f"mkdir -p $(dirname {RULES}) && cp /usr/share/doc/gpud/50-gpud.rules {RULES}")
    machine.run("systemctl reset-failed polkit; systemctl restart polkit")
    machine.run("id tester || useradd --create-home --groups gpud tester", check=False)
    machine.run("loginctl enable-linger tester")
    machine.wait("the user's service manager", "systemctl is-active user@$(id -u tester)")
    folder = f"/home/tester/.config/systemd/user/{UNIT}.d"
    (machine.root / "home/tester/tray.py").write_text(TRAY)
    machine.run(f"mkdir -p {folder} && cat >{folder}/wait.conf <<'X'\n{DROP_IN}X\n", user="tester")
    machine.run(f"{SESSION} systemctl --user daemon-reload", user="tester")
    yield machine
    machine.run(f"{SESSION} systemctl --user stop {UNIT} tray; rm -r {folder}; true", user="tester")
    machine.run(f"rm {RULES}")


@pytest.fixture
def tray(session: Machine) -> None:
    """There is a tray, and then gpud-tray is started."""
    command = "systemd-run --user --quiet --unit=tray /opt/gpud/bin/python -I -u /home/tester/tray.py"
    session.run(f"{SESSION} {command}", user="tester")
    wait_owned(session, "tester", "org.kde.StatusNotifierWatcher")
    session.run(f"{SESSION} systemctl --user start {UNIT}", user="tester")


def show(machine: Machine, *names: str) -> dict[str, str]:
    said = machine.run(f"{SESSION} systemctl --user show {UNIT} -p {','.join(names)}", user="tester").out
    return dict(line.split("=", 1) for line in said.splitlines())


def main_pid(machine: Machine) -> int:
    return int(show(machine, "MainPID")["MainPID"])


def icon(machine: Machine) -> str:
    """The name on the bus of the icon of the gpud-tray that runs, as soon as the tray has it."""
    journal = "journalctl --no-pager --quiet -o cat _SYSTEMD_USER_UNIT=tray.service"
    lines = f"{journal} | grep -e '^icon .*-{main_pid(machine)}-'"
    machine.wait("its icon", lines)
    return machine.run(lines).out.split()[-1]


def test_without_a_tray_the_unit_ends_and_stays_ended(session: Machine) -> None:
    """It is no failure, it is not tried again, and the journal says what is missing."""
    session.run(f"{SESSION} systemctl --user start {UNIT}", user="tester")
    journal = f"journalctl --no-pager --quiet -o cat _SYSTEMD_USER_UNIT={UNIT}"
    session.wait("what gpud-tray has to say", f"{journal} | grep -q 'gpud-tray: there is no tray: nobody owned'")
    ended = f"[ $({SESSION} systemctl --user show {UNIT} -p ActiveState --value) = inactive ]"
    session.wait("the end of gpud-tray", f"runuser -u tester -- bash -c {ended!r}")
    assert show(session, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}
    assert session.run(journal).out.count("there is no tray") == 1


def test_a_desktop_that_systemd_does_not_start_finds_it(session: Machine) -> None:
    """As the documents say, in a new home, which has no folder for what is started with the desktop."""
    command = "install -Dm644 -t ~/.config/autostart /usr/share/applications/gpud-tray.desktop"
    for page in ("desktop.md", "man/gpud-tray.1.md"):
        assert command in (TOP / "docs" / page).read_text()
    session.run(command, user="tester")
    session.run("grep -x Exec=gpud-tray ~/.config/autostart/gpud-tray.desktop", user="tester")


def lines(layout: Any) -> Iterator[tuple[int, str]]:
    """Each line of a menu with its number, as busctl writes it."""
    number, properties, children = layout
    yield number, properties.get("label", {}).get("data", "")
    for child in children:
        yield from lines(child["data"])


@pytest.mark.usefixtures("tray")
def test_the_icon_tells_what_is_loaded_and_unloads_it(session: Machine) -> None:
    """The tooltip has the model and how full the memory is; it is told, and does not ask: nothing wakes it at rest. A
    click on the model's line of the menu unloads it.
    """
    item = icon(session)
    ask = f"{SESSION} busctl --user --json=short"
    session.load("tiny")
    tooltip = f"{ask} get-property {item} /StatusNotifierItem org.kde.StatusNotifierItem ToolTip"
    session.wait("the tooltip", f"""runuser -u tester -- bash -c '{tooltip}' | grep -q 'tiny is loaded.*GiB in use'""")
    # All has been told that this load brings; from now on nothing happens.
    switches = f"grep ctxt_switches /proc/{main_pid(session)}/status"
    session.wait("a quiet tray", f'a=$({switches}); sleep 2; test "$a" = "$({switches})"')
    menu = session.run(f"{ask} call -- {item} /MenuBar com.canonical.dbusmenu GetLayout iias 0 -1 0", user="tester").out
    (number,) = (one for one, label in lines(json.loads(menu)["data"][1]) if label.startswith("Unload tiny"))
    session.run(f"{ask} call {item} /MenuBar com.canonical.dbusmenu Event isvu {number} clicked i 0 0", user="tester")
    session.run("gpudctl wait --state unloaded --timeout 120s tiny")
    session.wait("the tooltip", f"""runuser -u tester -- bash -c '{tooltip}' | grep -q 'No model is loaded'""")


@pytest.mark.usefixtures("tray")
def test_with_a_tray_it_stays_and_comes_back(session: Machine) -> None:
    """In its sandbox it reaches gpud on the system bus and the tray on the session's; killed, it is started again."""
    before = icon(session)
    session.run(f"{SESSION} systemctl --user kill --signal=KILL {UNIT}", user="tester")
    again = (
        f"{SESSION} systemctl --user show {UNIT} -p ActiveState -p NRestarts | paste -s | grep 'NRestarts=1.*=active'"
    )
    session.wait("the next gpud-tray", f"runuser -u tester -- bash -c {shlex.quote(again)}")
    assert icon(session) != before
