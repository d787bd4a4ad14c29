"""A gpud that makes room for another one, a newer version say: its engines stay as they are, and no answer is cut."""

import contextlib
import signal
import socket

from .doors import HELLO, Doors, talker
from .harness import BOUND_S, Daemon, Place, engine, settle, wait_gone
from .service_manager import Manager

HANDED_OVER = 80
MEGABYTES = 32
"""More than all the buffers on the way to a reader who does not read."""


def started(place: Place, manager: Manager) -> Daemon:
    daemon = place.start(wait=False)
    manager.wait_ready(BOUND_S)
    daemon.is_ready()
    return daemon


def closed(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), BOUND_S):
        return False
    return True


def test_engines_and_answers_survive_the_change(place: Place, doors: Doors, manager: Manager) -> None:
    """SIGUSR2 while an answer is made: nobody new is let in, the answer is finished, the next gpud has the model as it
    was, with the same process, and it serves."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = started(place, manager)
    record = daemon.loaded("tiny")
    body = {"model": "tiny", "messages": HELLO, "stream": True, "do": "pour", "mb": MEGABYTES}
    with doors.front.open("/v1/chat/completions", body) as answer:
        received = len(answer.read(1))
        daemon.signal(signal.SIGUSR2)
        settle(lambda: closed(doors.front.port), "nobody new is let in")
        assert daemon.running, "it waits for the answer"
        while piece := answer.read():
            received += len(piece)
    assert received >= MEGABYTES * 1_000_000
    assert daemon.wait_exit() == HANDED_OVER
    again = started(place, manager)
    again.wait_state("tiny", "ready")
    assert place.records()["tiny"]["child"] == record["child"]
    assert doors.front.chat("tiny").status == 200
    again.aftermath()


def test_what_was_idle_is_left_at_once(place: Place, manager: Manager) -> None:
    """A second signal changes nothing; engines of every kind are there for the next gpud."""
    place.configure({"one": engine(), "two": engine("--ignore-term"), "spare": engine()})
    daemon = started(place, manager)
    pids = {daemon.loaded(name)["child"]["pid"] for name in ("one", "two")}
    daemon.signal(signal.SIGUSR2)
    daemon.signal(signal.SIGUSR2)
    assert daemon.wait_exit() == HANDED_OVER
    # A copy in which it looked for models may be on its way out.
    settle(lambda: set(place.children()) == pids, "the engines alone are left", lambda: str(place.children()))
    again = started(place, manager)
    for name in ("one", "two"):
        again.wait_state(name, "ready")
    assert set(place.children()) == pids
    again.aftermath()


def test_whoever_is_told_to_end_for_good_meanwhile_does(place: Place, doors: Doors, manager: Manager) -> None:
    """SIGTERM after SIGUSR2: the engines end with it, and the status is that of any end."""
    place.configure({"tiny": talker(place), "spare": engine()}, shutdown_drain="60s")
    daemon = started(place, manager)
    pid = daemon.loaded("tiny")["child"]["pid"]
    body = {"model": "tiny", "messages": HELLO, "stream": True, "do": "stall"}
    with doors.front.open("/v1/chat/completions", body) as answer:
        assert answer.line()
        daemon.signal(signal.SIGUSR2)
        settle(lambda: closed(doors.front.port), "it has heard the first signal")
        daemon.signal(signal.SIGTERM)
        daemon.wait_state("tiny", "unloading")
    assert daemon.wait_exit() == 0
    wait_gone(pid)


def test_outside_a_service_manager_it_is_declined(place: Place) -> None:
    """Nobody would keep the engines' pipes: gpud says so and goes on as it was."""
    place.configure({"spare": engine()})
    daemon = place.start()
    record = daemon.loaded("spare")
    daemon.signal(signal.SIGUSR2)
    daemon.wait_log("cannot leave the engines to another gpud: nobody keeps their pipes")
    assert daemon.state("spare") == "ready"
    assert place.records()["spare"] == record
    daemon.aftermath()
