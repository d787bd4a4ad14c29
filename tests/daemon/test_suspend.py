"""The whole daemon beside a logind: it holds locks, empties the machine before a sleep and fills it afterwards."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dbus.private_bus import PrivateBus

from .harness import BOUND_S, CallFailed, Daemon, Place, engine, place_at
from .mock_machine import MockLogind, MockUPower, is_awake, overall, started, wait_until
from .own_files import show

BOTH = ("shutdown", "sleep")


def awake(daemon: Daemon, logind: MockLogind) -> None:
    """Nothing of the sleep is left over."""
    is_awake(daemon, logind)
    daemon.aftermath()


def test_locks_are_held_from_the_start_and_by_nobody_else(place: Place, logind: MockLogind) -> None:
    """One each for sleep and shutdown; an engine does not inherit them, so that they end with gpud."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    daemon.kill9()
    logind.wait_locks()
    again = started(place, logind)
    again.aftermath()


def test_a_sleep_empties_the_machine_and_a_waking_fills_it(place: Place, logind: MockLogind) -> None:
    """The lock goes as soon as the engine has, and comes back at once; loads are refused in between."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.sleep(True)
    logind.wait_locks("shutdown")
    assert place.records() == {}
    assert daemon.state("model") == "unloaded"
    assert overall(daemon) == "suspending"
    with pytest.raises(CallFailed) as caught:
        daemon.ask_load("model")
    assert caught.value.name == "Suspending"
    assert "ask again once the machine is awake" in caught.value.text
    logind.sleep(False)
    daemon.wait_state("model", "ready")
    awake(daemon, logind)


def test_an_engine_that_ignores_term_is_killed_in_time(place: Place, logind: MockLogind) -> None:
    """The lock goes before logind would wait no longer, and the engine is gone by then."""
    place.configure(
        {"model": engine("--ignore-term"), "spare": engine()}, stop={"drain": 5, "term": 60, "second_term": 60}
    )
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.sleep(True)
    logind.wait_locks("shutdown")
    assert place.records() == {}
    assert "has not ended and is killed: the machine cannot wait longer" in daemon.log()
    logind.sleep(False)
    daemon.wait_state("model", "ready")
    logind.sleep(True)
    logind.wait_locks("shutdown")
    assert place.records() == {}


def test_a_load_under_way_is_called_off_and_taken_up_again(place: Place, logind: MockLogind) -> None:
    """Whoever waits for it is told why."""
    gate = place.root / "gate"
    place.configure({"model": engine("--ready-when", str(gate)), "spare": engine()})
    daemon = started(place, logind)
    job = daemon.ask_load("model")
    daemon.wait_state("model", "loading")
    logind.sleep(True)
    ended = daemon.wait_job(job)
    assert ended.result == "failed"
    assert "the machine is about to sleep" in ended.message
    logind.wait_locks("shutdown")
    gate.touch()
    logind.sleep(False)
    daemon.wait_state("model", "ready")
    awake(daemon, logind)


def test_it_is_said_twice_and_the_waking_without_a_sleep(place: Place, logind: MockLogind) -> None:
    """Neither does any harm."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.sleep(False)
    logind.sleep(True)
    logind.sleep(True)
    logind.wait_locks("shutdown")
    logind.sleep(False)
    logind.sleep(False)
    daemon.wait_state("model", "ready")
    awake(daemon, logind)


def answering(**settings: object) -> dict[str, object]:
    """An engine that answers for longer than there is time."""
    return engine("--busy", "1", busy={"get": "/queue", "any": ["queue_running"]}, **settings)


def test_answers_that_do_not_end_are_cut_in_time(place: Place, logind: MockLogind) -> None:
    """They have what there is of logind's delay, which may be another one, less what the engine needs to end."""
    place.configure({"model": answering(), "spare": engine()})
    daemon = started(place, logind)
    logind.set(InhibitDelayMaxUSec=("t", 2_500_000))
    assert daemon.load("model").result == "done"
    logind.sleep(True)
    daemon.wait_log(r"1 model has to be unloaded within 2\.0 s")
    logind.wait_locks("shutdown")
    assert place.records() == {}
    daemon.wait_log(r'"model" is still busy .* and is stopped: the machine is about to sleep')
    logind.sleep(False)
    daemon.wait_state("model", "ready")
    assert daemon.unload("model", force=True).result == "done"
    awake(daemon, logind)


def test_logind_is_killed_while_models_are_on_their_way_out(place: Place, logind: MockLogind) -> None:
    """The one that comes back does not sleep: who still answers stays, by the same process."""
    place.configure({"model": answering(), "spare": engine()})
    daemon = started(place, logind)
    pid = daemon.loaded("model")["child"]["pid"]
    logind.set(InhibitDelayMaxUSec=("t", 120_000_000))
    logind.sleep(True)
    daemon.wait_log("1 model has to be unloaded within 96")
    logind.kill()
    logind.start()
    logind.wait_locks(*BOTH)
    daemon.wait_state("model", "ready")
    assert place.records()["model"]["child"]["pid"] == pid
    assert daemon.unload("model", force=True).result == "done"
    awake(daemon, logind)


@pytest.mark.parametrize("asleep", [False, True])
def test_the_bus_is_killed_with_all_that_is_on_it(bus: PrivateBus, mortal_bus: PrivateBus, asleep: bool) -> None:
    """gpud finds the next one by itself and takes its locks anew; what was loaded before the sleep is loaded again."""
    with place_at(bus.address) as place:
        place.environment["DBUS_SYSTEM_BUS_ADDRESS"] = mortal_bus.address
        logind = MockLogind(mortal_bus.address)
        try:
            place.configure({"model": engine(), "spare": engine()})
            daemon = started(place, logind)
            pid = daemon.loaded("model")["child"]["pid"]
            if asleep:
                logind.sleep(True)
                logind.wait_locks("shutdown")
            mortal_bus.kill()
            logind.kill()
            mortal_bus.start()
            logind.start()
            logind.wait_locks(*BOTH)
            daemon.wait_state("model", "ready")
            assert (place.records()["model"]["child"]["pid"] == pid) != asleep
            awake(daemon, logind)
        finally:
            logind.close()


def test_logind_is_restarted_while_the_machine_is_about_to_sleep(place: Place, logind: MockLogind) -> None:
    """The new one says that it is over, by its properties alone: locks are taken, and what was loaded is loaded."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.sleep(True)
    logind.wait_locks("shutdown")
    logind.kill()
    logind.start()
    daemon.wait_state("model", "ready")
    awake(daemon, logind)


def test_a_daemon_that_is_killed_meanwhile_finds_the_machine_about_to_sleep(place: Place, logind: MockLogind) -> None:
    """Nobody tells the new one that it began: it asks, refuses loads, and hears the end of it."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    logind.sleep(True)
    logind.wait_locks("shutdown")
    daemon.kill9()
    logind.wait_locks()
    again = place.start()
    wait_until(lambda: overall(again) == "suspending", "it is about to sleep")
    with pytest.raises(CallFailed, match="Suspending"):
        again.ask_load("model")
    logind.sleep(False)
    logind.wait_locks(*BOTH)
    wait_until(lambda: overall(again) == "idle", "it is awake")
    assert again.load("model").result == "done"
    assert again.stop() == 0


def test_before_a_shutdown_engines_end_and_one_that_is_called_off_is_over(place: Place, logind: MockLogind) -> None:
    """As for a sleep, and the refusal says what is the matter."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.shut_down(True)
    logind.wait_locks("sleep")
    assert place.records() == {}
    with pytest.raises(CallFailed) as caught:
        daemon.ask_load("model")
    assert caught.value.name == "ShuttingDown"
    logind.shut_down(False)
    daemon.wait_state("model", "ready")
    awake(daemon, logind)


def test_what_is_kept_stays_where_that_is_configured(place: Place, logind: MockLogind) -> None:
    """In the machine's own memory nothing is lost; the lock goes at once."""
    place.configure({"model": engine(), "spare": engine()}, suspend={"policy": "keep"})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    (pid,) = [record["child"]["pid"] for record in place.records().values()]
    logind.sleep(True)
    logind.wait_locks("shutdown")
    assert daemon.state("model") == "ready"
    logind.sleep(False)
    is_awake(daemon, logind)
    assert [record["child"]["pid"] for record in place.records().values()] == [pid]
    daemon.aftermath()


def test_nothing_comes_back_where_that_is_configured(place: Place, logind: MockLogind) -> None:
    """And it can be loaded again."""
    place.configure({"model": engine(), "spare": engine()}, suspend={"restore": False})
    daemon = started(place, logind)
    assert daemon.load("model").result == "done"
    logind.sleep(True)
    logind.wait_locks("shutdown")
    logind.sleep(False)
    wait_until(lambda: overall(daemon) == "idle", "it is awake")
    assert daemon.state("model") == "unloaded"
    awake(daemon, logind)


def with_a_hold(place: Place, **idle: object) -> None:
    place.configure({"model": engine(), "held": engine(), "spare": engine()}, idle=idle, logging={"level": "debug"})


def hold(place: Place, daemon: Daemon) -> None:
    """Two are loaded, one of them is held."""
    assert daemon.load("held").result == "done"
    place.client().call("Hold", "sss", "held", "a test", "it is used")
    assert daemon.load("model").result == "done"


def test_everything_goes_when_all_sessions_are_idle(place: Place, logind: MockLogind) -> None:
    """By logind's hint alone; held models stay, and what is loaded afterwards stays as it would."""
    with_a_hold(place, sessions_idle=0.1)
    daemon = started(place, logind)
    hold(place, daemon)
    logind.set(IdleHint=("b", True))
    daemon.wait_state("model", "unloaded")
    logind.set(IdleHint=("b", False))
    assert daemon.load("model").result == "done"
    logind.set(IdleHint=("b", True))
    daemon.wait_log(r"given back: gpud \(sessions idle for 0\.1 s\) asked for it", count=2)
    assert daemon.state("held") == "ready"
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", [MockLogind.ask_to_lock, MockLogind.locked])
def test_everything_goes_when_a_session_is_locked(
    place: Place, logind: MockLogind, how: Callable[[MockLogind, str], None]
) -> None:
    """By loginctl, or by a desktop itself."""
    with_a_hold(place, locked=True)
    daemon = started(place, logind)
    hold(place, daemon)
    logind.log_in("c1", 1000)
    how(logind, "c1")
    daemon.wait_state("model", "unloaded")
    daemon.wait_log(r"given back: gpud \(a session was locked\) asked for it")
    assert daemon.state("held") == "ready"
    assert daemon.stop() == 0


def test_everything_goes_when_the_last_user_has_logged_out(place: Place, logind: MockLogind) -> None:
    """Whoever lingers is not told of as removed; a greeter, cron and the user's own manager are nobody, and do not log
    out either.
    """
    with_a_hold(place, logged_out=True)
    logind.log_in("c1", 1000)
    daemon = started(place, logind)
    daemon.wait_log("somebody is logged in")
    hold(place, daemon)
    logind.log_in("2", 1000, "manager")
    logind.log_in("c2", 1001)
    daemon.wait_log("somebody is logged in", count=3)
    logind.log_out("c1")
    daemon.wait_log("somebody is logged in", count=4)
    logind.log_in("c3", 108, "greeter")
    daemon.wait_log("somebody is logged in", count=5)
    assert daemon.state("model") == "ready"
    logind.log_out("c2")
    daemon.wait_log(r"given back: gpud \(the last user has logged out\) asked for it")
    assert daemon.state("held") == "ready"
    assert daemon.load("model").result == "done"
    logind.log_in("c4", 0, "background")
    daemon.wait_log("nobody is logged in", count=2)
    logind.log_out("c4")
    daemon.wait_log("nobody is logged in", count=3)
    assert daemon.state("model") == "ready"
    assert daemon.log().count("the last user has logged out") == 1
    assert daemon.stop() == 0


@pytest.mark.usefixtures("system_bus")
def test_nothing_depends_on_a_logind_that_is_not_there(place: Place) -> None:
    """A line for those who look for one, and all else as ever."""
    place.configure({"model": engine(), "spare": engine()}, logging={"level": "debug"})
    daemon = place.start()
    assert daemon.load("model").result == "done"
    daemon.wait_log("org.freedesktop.login1 is not there")
    daemon.aftermath()


def test_on_battery_models_go_sooner(place: Place, system_bus: PrivateBus) -> None:
    """UPower says so, and says when it is over."""
    upower = MockUPower(system_bus.address)
    try:
        place.configure({"model": engine(idle_timeout=3600), "spare": engine()}, idle={"timeout_on_battery": 1})
        daemon = place.start()
        assert daemon.load("model").result == "done"
        upower.set(OnBattery=("b", True))
        daemon.wait_state("model", "unloaded")
        upower.set(OnBattery=("b", False))
        wait_until(lambda: daemon.load("model").result == "done" and _far(daemon), "it stays for an hour")
        daemon.aftermath()
    finally:
        upower.close()


@pytest.mark.usefixtures("system_bus")
def test_without_upower_the_battery_is_looked_at_with_the_devices(place: Place, tmp_path: Path) -> None:
    """In /sys; it is noticed when it is fed again, too."""
    for name, kind in (("AC", "Mains"), ("BAT0", "Battery")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
    show(place, {"/sys/class/power_supply": tmp_path})
    feed(tmp_path, fed=False)
    place.configure(
        {"model": engine(idle_timeout=3600), "spare": engine()}, idle={"timeout_on_battery": 1}, gpu={"watch": 1}
    )
    daemon = place.start()
    assert daemon.load("model").result == "done"
    daemon.wait_state("model", "unloaded")
    feed(tmp_path, fed=True)
    wait_until(lambda: daemon.load("model").result == "done" and _far(daemon), "it stays for an hour")
    feed(tmp_path, fed=False)
    daemon.wait_state("model", "unloaded")
    daemon.aftermath()


def feed(supplies: Path, *, fed: bool) -> None:
    (supplies / "AC" / "online").write_text(f"{int(fed)}\n")
    (supplies / "BAT0" / "status").write_text("Charging\n" if fed else "Discharging\n")


def _far(daemon: Daemon) -> bool:
    return float(daemon.model("model")["IdleTimeoutUSec"]) > 1e9


@pytest.mark.usefixtures("system_bus")
def test_a_program_of_the_list_has_the_memory_as_long_as_it_runs(place: Place, tmp_path: Path) -> None:
    """Seen at the next load, by its name; who wants a model waits until it has ended."""
    game = tmp_path / "doom-eternal.exe"
    game.symlink_to("/bin/sleep")
    place.configure({"model": engine(), "spare": engine()}, give_way={"programs": ["doom-*"]}, gpu={"watch": 1})
    daemon = place.start()
    assert daemon.load("model").result == "done"
    playing = subprocess.Popen([str(game), "3600"])
    try:
        daemon.wait_state("model", "unloaded")
        job = daemon.ask_load("spare")
        wait_until(lambda: "doom-eternal.exe has them" in repr(daemon.status()), "it is told what is waited for")
    finally:
        playing.send_signal(signal.SIGKILL)
        playing.wait()
    assert daemon.wait_job(job, BOUND_S).result == "done"
    daemon.aftermath()
