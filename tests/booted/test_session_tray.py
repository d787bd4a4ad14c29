"""gpud-tray as a unit of a user's own systemd, in a session without a screen."""

from collections.abc import Iterator

import pytest
from booted_machine import Machine

pytestmark = pytest.mark.booted

SESSION = "export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus;"
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
    """A user whose systemd runs, and whose gpud-tray waits for no tray."""
    machine.run("id tester || useradd --create-home --groups gpud tester", check=False)
    machine.run("loginctl enable-linger tester")
    machine.wait("the user's service manager", "systemctl is-active user@$(id -u tester)")
    folder = f"/home/tester/.config/systemd/user/{UNIT}.d"
    (machine.root / "home/tester/tray.py").write_text(TRAY)
    machine.run(f"mkdir -p {folder} && cat >{folder}/wait.conf <<'X'\n{DROP_IN}X\n", user="tester")
    machine.run(f"{SESSION} systemctl --user daemon-reload", user="tester")
    yield machine
    machine.run(f"{SESSION} systemctl --user stop {UNIT} tray; rm -r {folder}; true", user="tester")


def show(machine: Machine, *names: str) -> dict[str, str]:
    said = machine.run(f"{SESSION} systemctl --user show {UNIT} -p {','.join(names)}", user="tester").out
    return dict(line.split("=", 1) for line in said.splitlines())


def test_without_a_tray_the_unit_ends_and_stays_ended(session: Machine) -> None:
    """It is no failure, it is not tried again, and the journal says what is missing."""
    session.run(f"{SESSION} systemctl --user start {UNIT}", user="tester")
    journal = f"journalctl --no-pager --quiet -o cat _SYSTEMD_USER_UNIT={UNIT}"
    session.wait("what gpud-tray has to say", f"{journal} | grep -q 'gpud-tray: there is no tray: nobody owned'")
    ended = f"[ $({SESSION} systemctl --user show {UNIT} -p ActiveState --value) = inactive ]"
    session.wait("the end of gpud-tray", f"runuser -u tester -- bash -c {ended!r}")
    assert show(session, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}
    assert session.run(journal).out.count("there is no tray") == 1


def test_with_a_tray_it_stays_and_comes_back(session: Machine) -> None:
    """In its sandbox it reaches gpud on the system bus and the tray on the session's; killed, it is started again."""
    tray = "systemd-run --user --quiet --unit=tray /opt/gpud/bin/python -I -u /home/tester/tray.py"
    session.run(f"{SESSION} {tray}", user="tester")
    owned = f"{SESSION} busctl --user status org.kde.StatusNotifierWatcher"
    session.wait("a tray", f"runuser -u tester -- bash -c {owned!r}")
    session.run(f"{SESSION} systemctl --user start {UNIT}", user="tester")
    journal = "journalctl --no-pager --quiet -o cat _SYSTEMD_USER_UNIT=tray.service"
    icons = f"{journal} | grep -c '^icon org.kde.StatusNotifierItem-'"
    session.wait("an icon", f"[ $({icons}) -ge 1 ]")
    session.run(f"{SESSION} systemctl --user kill --signal=KILL {UNIT}", user="tester")
    session.wait("an icon of the next gpud-tray", f"[ $({icons}) -ge 2 ]")
    assert show(session, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
