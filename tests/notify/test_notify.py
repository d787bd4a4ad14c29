"""gpud-notify as a person meets it: what is shown, how often, what its buttons do, and when it goes again."""

import subprocess
from pathlib import Path

from daemon.harness import Place, engine, script
from dbus.private_bus import PrivateBus

from .conftest import BOUND_S, GPUD, LOST, SYSTEMD, Desktop, Mock, Start

UNIT = f"/{SYSTEMD.replace('.', '/')}/unit/ml_2dstorage_2dmonitor_2eservice"
HELD = [{"Model": ("s", "big"), "What": ("s", "evict:unload")}]
ALERT = (("s", "GPU-1"), ("s", "RTX"), ("b", True), ("u", 96), ("u", 95), ("s", "96 % of 8.0 GiB are used"))
OVER = (("s", "GPU-1"), ("s", "RTX"), ("b", False), ("u", 40), ("u", 95), ("s", "40 % of 8.0 GiB are used"))
NORMAL, CRITICAL = 1, 2


def degraded(gpud: Mock, text: str) -> None:
    gpud.call("UpdateProperties", "sa{sv}", GPUD, {"Degraded": ("s", text)})


def disk(systemd: Mock, state: str) -> None:
    systemd.call("UpdateProperties", "sa{sv}", f"{SYSTEMD}.Unit", {"ActiveState": ("s", state)}, path=UNIT)


def follows(told_gpud: Mock, desktop: Desktop) -> None:
    """It has read the state, and hears of changes."""
    told_gpud.next_call("Status")
    assert desktop.calls("Notify") == 0


def test_a_lost_gpu_is_shown_once_and_goes_when_it_is_back(
    told_gpud: Mock, systemd: Mock, desktop: Desktop, start: Start
) -> None:
    """With its name and its driver's words, until it works; it is not shown twice; another trouble replaces it."""
    start()
    follows(told_gpud, desktop)
    degraded(told_gpud, "gpu-unavailable")
    shown = desktop.next_shown()
    assert shown.title == "A GPU does not work"
    assert shown.text == f"RTX 3050: {LOST}\ngpudctl doctor says more."
    assert (shown.actions, shown.urgency, shown.replaces) == (("log",), CRITICAL, 0)
    degraded(told_gpud, "gpu-unavailable")
    degraded(told_gpud, "state-not-kept")
    again = desktop.next_shown()
    assert again.title == "gpud cannot keep its state"
    assert again.replaces == 1
    degraded(told_gpud, "")
    assert desktop.next_call("CloseNotification") == (1,)


def test_it_speaks_the_language_of_the_session(told_gpud: Mock, systemd: Mock, desktop: Desktop, start: Start) -> None:
    """What it says itself, and what stands on its buttons; what gpud says of the case stays as it is."""
    start("de_DE.UTF-8")
    follows(told_gpud, desktop)
    degraded(told_gpud, "gpu-unavailable")
    shown = desktop.next_shown()
    assert shown.title == "Eine GPU arbeitet nicht"
    assert shown.text == f"RTX 3050: {LOST}\nMehr sagt gpudctl doctor."
    assert shown.labels == ("Protokoll anzeigen",)


def test_models_that_are_not_told_are_asked_for(told_gpud: Mock, systemd: Mock, desktop: Desktop, start: Start) -> None:
    """Where there are very many gpud only says that something about them has changed."""
    start()
    follows(told_gpud, desktop)
    changes = (("s", GPUD), ("a{sv}", {}), ("as", ["Models"]))
    told_gpud.emit("org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", *changes)
    assert desktop.next_shown().title == "sad fails again and again"
    assert told_gpud.calls("ListModels") == 1


def test_a_full_gpu_is_shown_only_where_a_person_has_to_choose(
    told_gpud: Mock, systemd: Mock, desktop: Desktop, start: Start
) -> None:
    """Without a hold gpud makes room by itself, which is routine; what is held stays, and is named."""
    start()
    follows(told_gpud, desktop)
    told_gpud.emit(GPUD, "VramAlert", "ssbuus", *ALERT)
    told_gpud.emit(GPUD, "VramAlert", "ssbuus", *OVER)
    told_gpud.call("UpdateProperties", "sa{sv}", GPUD, {"Holds": ("aa{sv}", HELD)})
    told_gpud.emit(GPUD, "VramAlert", "ssbuus", *ALERT)
    shown = desktop.next_shown()
    assert desktop.calls("Notify") == 1
    assert shown.title == "RTX is nearly full: 96 % (alert at 95 %)"
    assert "What is held stays: big." in shown.text
    assert shown.urgency == NORMAL
    told_gpud.emit(GPUD, "VramAlert", "ssbuus", *OVER)
    assert desktop.next_call("CloseNotification") == (1,)


def test_a_full_disk_is_shown_until_a_look_finds_room(
    told_gpud: Mock, systemd: Mock, desktop: Desktop, start: Start, tmp_path: Path
) -> None:
    """The weekly look fails: shown, also where it failed before the session began; its button shows what is there."""
    disk(systemd, "failed")
    start()
    shown = desktop.next_shown()
    assert shown.title == "The disk with the models is nearly full"
    desktop.press(1, shown.actions[0])
    wait_for(tmp_path / "ran")
    assert "gpudctl storage du;" in (tmp_path / "ran").read_text()
    disk(systemd, "activating")
    disk(systemd, "inactive")
    assert desktop.next_call("CloseNotification") == (1,)
    assert desktop.calls("Notify") == 1


def test_a_model_that_fails_again_and_again_can_be_tried_again(
    place: Place, desktop: Desktop, start: Start, tmp_path: Path
) -> None:
    """With a real daemon: shown when gpud gives up, with the reason; the buttons show the log there, and load it."""
    mended = tmp_path / "mended"
    working = engine()["command"]
    assert isinstance(working, list)
    whole = " ".join(f"'{word}'" for word in working).replace("'${socket}'", "${socket}")
    text = f"if test -e {mended}; then exec {whole}; else exit 3; fi"
    place.configure({"sad": script(text), "spare": engine()})
    start("C.UTF-8", "--user")
    daemon = place.start()
    for _ in range(3):
        assert daemon.load("sad").result == "failed"
    shown = desktop.next_shown()
    assert shown.title == "sad fails again and again"
    assert "exited with status" in shown.text
    assert (shown.actions, shown.urgency) == (("log", "retry"), CRITICAL)
    desktop.press(1, "log")
    wait_for(tmp_path / "ran")
    assert "gpudctl --user log sad;" in (tmp_path / "ran").read_text()
    mended.touch()
    desktop.press(1, "retry")
    assert desktop.next_call("CloseNotification") == (1,)
    daemon.wait_state("sad", "ready")
    assert desktop.calls("Notify") == 1


def test_what_is_routine_is_not_shown(place: Place, desktop: Desktop, start: Start) -> None:
    """Loads, unloads, and a load that fails for somebody who is told so."""
    place.configure({"one": engine(), "lost": script("exit 3")})
    daemon = place.start()
    process = start()
    assert daemon.load("one").result == "done"
    daemon.client.call("Unload", "s", "one")
    daemon.wait_state("one", "unloaded")
    assert daemon.load("lost").result == "failed"
    daemon.wait_state("lost", "failed")
    process.terminate()
    assert process.wait(BOUND_S) == 0
    assert desktop.calls("Notify") == 0


def test_it_waits_for_a_daemon_and_for_the_next_one(place: Place, desktop: Desktop, start: Start) -> None:
    """It starts nothing, and follows whoever comes; a second one in the same session steps back."""
    start()
    second = start()
    assert second.wait(BOUND_S) == 0
    place.configure({"sad": script("exit 3")})
    first = place.start()
    for _ in range(3):
        first.load("sad")
    assert desktop.next_shown().title == "sad fails again and again"
    first.stop()
    place.start()
    # Its failures are forgotten with the daemon: what was shown of them goes.
    assert desktop.next_call("CloseNotification") == (1,)


def test_without_a_session_it_says_so() -> None:
    """In a place without a session bus: one line, and status 1."""
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "gpud.notify", "--user"], env={"PATH": "/usr/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpud-notify: cannot show notifications: the session bus is unknown")


def wait_for(path: Path) -> None:
    """Until a file is there; what makes it is a program of its own."""
    script = 'until test -e "$1"; do sleep 0.05; done'
    subprocess.run(["sh", "-c", script, "sh", str(path)], check=True, timeout=BOUND_S)


def test_the_end_of_the_session_is_its_end(bus: PrivateBus, desktop: Desktop, told_gpud: Mock, start: Start) -> None:
    """The bus goes: status 1 for its unit where that was the system's as well, without a trace of Python's."""
    process = start()
    follows(told_gpud, desktop)
    bus.kill()
    assert process.wait(BOUND_S) in (0, 1)
