"""gpud-notify as a unit of a user's own systemd, with python-dbusmock's notification daemon in place of a desktop's."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from booted_machine import Machine
from logins import RULES, SESSION, wait_owned

pytestmark = pytest.mark.booted

UNIT = "gpud-notify.service"
HOME = "/home/vera"

MODEL = """\
models:
  sad:
    engine: custom
    command: [/usr/bin/python3, /var/lib/ml-models/custom/sad.py, "${port}"]
    health: /
    size: 64MiB
"""

SAD = """\
import http.server, os, sys
if not os.path.exists("/var/lib/ml-models/custom/mended"):
    sys.exit("the weights are of another size")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), type("Answer", (http.server.BaseHTTPRequestHandler,), {
    "do_GET": lambda self: (self.send_response(200), self.end_headers())})).serve_forever()
"""

TERMINAL = """\
#!/bin/sh
# Whatever is to be shown in a terminal, in a file in place of one.
"$@" >"$HOME/shown.new" 2>&1 </dev/null
mv "$HOME/shown.new" "$HOME/shown"
"""

NOTIFICATIONS = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications")
MOCK = "org.freedesktop.DBus.Mock"


class Desk:
    """Vera's session as seen from outside: what it was shown, and the buttons."""

    def __init__(self, machine: Machine, user: int) -> None:
        self.machine = machine
        # The way into the machine is root's alone, but whoever starts there is there; and the bus lets its own user in.
        self._place = f"/proc/{machine.leader}/root/run/user/{user}"
        self._environment = {"PATH": os.environ["PATH"], "DBUS_SESSION_BUS_ADDRESS": "unix:path=bus", "HOME": "/"}
        self._environment["LC_ALL"] = "C.UTF-8"
        self._as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self._mock = subprocess.Popen(
            [*self._as_user, "/usr/bin/python3", "-m", "dbusmock", "--session", "--template", "notification_daemon"],
            cwd=self._place,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._gdbus("wait", "--timeout", "30", NOTIFICATIONS[0])
        except BaseException:
            self.close()
            raise

    def _gdbus(self, verb: str, *words: str) -> str:
        command = [*self._as_user, "gdbus", verb, "--session", *words]
        done = subprocess.run(
            command, cwd=self._place, env=self._environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _ask(self, member: str, *words: str) -> str:
        name, path = NOTIFICATIONS
        return self._gdbus("call", "--dest", name, "--object-path", path, "--method", f"{MOCK}.{member}", *words)

    def press(self, number: int, action: str) -> None:
        self._ask("EmitSignal", NOTIFICATIONS[0], "ActionInvoked", "us", f"[<uint32 {number}>, <'{action}'>]")

    def calls(self, member: str) -> int:
        return self._ask("GetCalls").count(f"'{member}'")

    def shown(self) -> str:
        """All that was shown so far, as the bus carried it."""
        return self._ask("GetCalls")

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """The mock cannot be waited for with a line of shell inside the machine."""
        for _ in range(400):
            if condition():
                return
            self.machine.run("sleep 0.05")
        raise AssertionError(f"{what}: not within 20 s\n{self.shown()}\n{self.machine.journal()}")

    def run(self, script: str) -> str:
        return self.machine.run(f"{SESSION} {script}", user="vera").out

    def close(self) -> None:
        self._mock.kill()
        self._mock.wait()


@pytest.fixture
def desk(machine: Machine) -> Iterator[Desk]:
    """A user in the group gpud who speaks German and may read the journal, with the unit started; and a model that
    cannot be loaded until it is mended.
    """
    machine.run("id vera || useradd --create-home --shell /bin/bash --groups gpud,systemd-journal vera")
    machine.run(f"mkdir -p $(dirname {RULES}) && cp /usr/share/doc/gpud/50-gpud.rules {RULES}")
    machine.run(f"cat >/usr/local/bin/xdg-terminal-exec <<'X'\n{TERMINAL}X\nchmod +x /usr/local/bin/xdg-terminal-exec")
    (machine.root / "var/lib/ml-models/custom/sad.py").write_text(SAD)
    (machine.root / "etc/gpud/gpud.d/sad.yaml").write_text(MODEL)
    machine.run("systemctl reload gpud && loginctl enable-linger vera")
    machine.wait("her service manager", "systemctl is-active user@$(id -u vera)")
    made = Desk(machine, int(machine.run("id -u vera").out))
    try:
        made.run("systemctl --user set-environment LANG=de_DE.UTF-8")
        made.run(f"systemctl --user start {UNIT}")
        wait_owned(machine, "vera", "org.kernelcore.GpuD.Notify")
        yield made
    finally:
        machine.run(f"{SESSION} systemctl --user stop {UNIT}", user="vera", check=False)
        made.close()
        machine.run("loginctl disable-linger vera; gpudctl unload --all --force", check=False)
        machine.run("rm -f /etc/gpud/gpud.d/sad.yaml /var/lib/ml-models/custom/mended /usr/local/bin/xdg-terminal-exec")
        machine.run(f"rm {RULES}; systemctl reload gpud; systemctl reset-failed ml-storage-monitor", check=False)


def test_a_model_that_fails_is_shown_explained_and_tried_again(desk: Desk) -> None:
    """As installed, in its sandbox and in her language: once, when gpud gives up. One button shows the engine's own
    words, the other loads it anew, and then the notification goes.
    """
    machine = desk.machine
    for _ in range(3):
        assert machine.run("gpudctl load sad", check=False).code != 0
    desk.until("the notification", lambda: desk.calls("Notify") == 1)
    shown = desk.shown()
    for words in ("sad schlägt immer wieder fehl", "Protokoll anzeigen", "Noch einmal versuchen", "status 1"):
        assert words in shown
    desk.press(1, "log")
    machine.wait("the log", f"test -e {HOME}/shown")
    assert "the weights are of another size" in machine.run(f"cat {HOME}/shown").out
    machine.run("touch /var/lib/ml-models/custom/mended")
    desk.press(1, "retry")
    machine.run("gpudctl wait --timeout 120s sad")
    desk.until("the end of the notification", lambda: desk.calls("CloseNotification") == 1)
    assert desk.calls("Notify") == 1


def test_a_full_disk_is_shown_with_what_takes_the_room(desk: Desk) -> None:
    """The machine's own look at the disk fails; the button says what there is, and the look that finds room ends it."""
    machine = desk.machine
    folder = "/run/systemd/system/ml-storage-monitor.service.d"

    def look(least: str) -> None:
        """As the timer has it done, on a disk that has to have so much room."""
        drop_in = f"[Service]\\nExecStart=\\nExecStart=/usr/bin/gpudctl storage check --fail --least {least}\\n"
        machine.run(f"mkdir -p {folder} && printf '{drop_in}' >{folder}/least.conf && systemctl daemon-reload")
        machine.run("systemctl start ml-storage-monitor", check=False)

    try:
        look("4000000T")
        desk.until("the notification", lambda: desk.calls("Notify") == 1)
        assert "Die Festplatte mit den Modellen ist fast voll" in desk.shown()
        assert "ML models storage low" in machine.run("systemctl status ml-storage-monitor", check=False).out
        machine.run(f"rm -f {HOME}/shown")
        desk.press(1, "storage")
        machine.wait("what takes the room", f"test -e {HOME}/shown")
        assert "ml-models" in machine.run(f"cat {HOME}/shown").out
        look("1B")
        desk.until("the end of the notification", lambda: desk.calls("CloseNotification") == 1)
    finally:
        machine.run(f"rm -r {folder}; systemctl daemon-reload")


def test_killed_it_is_there_again_and_follows_the_next_gpud(desk: Desk) -> None:
    """kill -9 of it and of gpud: the unit starts it again, and what goes wrong afterwards is shown."""
    machine = desk.machine
    before = desk.run(f"systemctl --user show --value -p MainPID {UNIT}")
    machine.run(f"kill -9 {before}")
    again = f"{SESSION} p=$(systemctl --user show --value -p MainPID {UNIT}); test $p -gt 0 -a $p -ne {before}"
    machine.wait("the next gpud-notify", f"runuser -u vera -- bash -c {again!r}")
    wait_owned(machine, "vera", "org.kernelcore.GpuD.Notify")
    machine.run(f"kill -9 {machine.main_pid()}")
    machine.wait("gpud", "gpudctl status")
    for _ in range(3):
        assert machine.run("gpudctl load sad", check=False).code != 0
    desk.until("the notification", lambda: desk.calls("Notify") == 1)
    assert desk.run(f"systemctl --user show --value -p NRestarts {UNIT}") == "1"
