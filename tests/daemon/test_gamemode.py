"""A game registers with GameMode on the session bus: the GPUs are its own until it has ended, whoever tells that."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fake_nvml.gpu import FakeGpus
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

from .harness import BOUND_S, CallFailed, Daemon, Place, engine, on_gpu
from .mock_machine import wait_until

NAME = "com.feralinteractive.GameMode"
PATH = "/com/feralinteractive/GameMode"


class GameMode:
    """The daemon of that name, as far as others see it. ``playing`` are the games of before somebody asks."""

    def __init__(self, address: str, *playing: int) -> None:
        self._connection = open_dbus_connection(address)
        self._playing = list(playing)
        self._writing = threading.Lock()
        assert self._connection.send_and_get_reply(message_bus.RequestName(NAME), timeout=BOUND_S).body[0] == 1
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                message = self._connection.receive()
            except (OSError, ValueError):
                return
            if message.header.fields.get(HeaderFields.member) == "ListGames":
                games = [(pid, f"{PATH}/Games/{pid}") for pid in self._playing]
                with self._writing:
                    self._connection.send(new_method_return(message, "a(io)", (games,)))

    def tell(self, member: str, pid: int) -> None:
        with self._writing:
            signal = new_signal(DBusAddress(PATH, NAME, NAME), member, "io", (pid, f"{PATH}/Games/{pid}"))
            assert signal.header.message_type is MessageType.signal
            self._connection.send(signal)

    def play(self, pid: int) -> None:
        self._playing.append(pid)
        self.tell("GameRegistered", pid)

    def stop(self, pid: int) -> None:
        self._playing.remove(pid)
        self.tell("GameUnregistered", pid)

    def close(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(BOUND_S)
        self._connection.close()


@contextmanager
def helper(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """What gpud-gamemode.service runs."""
    process = subprocess.Popen(["gpudctl", "_gamemode"], env=place.terminal())
    try:
        yield process
    finally:
        process.terminate()
        process.wait(BOUND_S)


def game_holds(daemon: Daemon) -> list[str]:
    return [hold["Application"][1] for hold in daemon.status()["Holds"] if hold["What"][1] == "game"]


@pytest.mark.parametrize("how", ["unregistered", "gamemode ends", "helper is killed"])
def test_a_game_has_the_memory_until_it_ends(place: Place, how: str) -> None:
    """It was registered before the helper came; its end is told, or everybody who could tell it is gone."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    assert daemon.load("model").result == "done"
    gamemode = GameMode(place.address, os.getpid())
    try:
        with helper(place) as process:
            daemon.wait_state("model", "unloaded")
            assert len(game_holds(daemon)) == 1
            job = daemon.ask_load("model")
            if how == "unregistered":
                gamemode.tell("GameUnregistered", os.getpid())
            elif how == "gamemode ends":
                gamemode.close()
            else:
                process.kill()
            assert daemon.wait_job(job).result == "done"
            assert game_holds(daemon) == []
    finally:
        if how != "gamemode ends":
            gamemode.close()
    daemon.aftermath()


def test_a_game_that_starts_is_noticed(place: Place) -> None:
    """And a second one keeps what the first had."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    gamemode = GameMode(place.address, 1)
    try:
        with helper(place):
            wait_until(lambda: len(game_holds(daemon)) == 1, "it follows")
            gamemode.tell("GameRegistered", os.getpid())
            gamemode.tell("GameUnregistered", 1)
            gamemode.tell("GameUnregistered", os.getpid())
            wait_until(lambda: game_holds(daemon) == [], "all have ended")
    finally:
        gamemode.close()
    daemon.aftermath()


@pytest.mark.parametrize("loads", ["wait", "cpu", "refuse"])
def test_loads_meanwhile_do_as_they_are_told(place: Place, gpus: FakeGpus, loads: str) -> None:
    """They wait for the end of the game, run on the processor, or are refused with the game's name; what needs no GPU
    is not concerned, and what was held comes back when the game is over.
    """
    models = {name: on_gpu(place, gpus, name) for name in ("held", "other")}
    place.configure({**models, "host": engine(gpu="host")}, give_way={"loads": loads}, gpu={"reserve": 0, "watch": 0})
    daemon = place.start()
    assert daemon.load("held").result == "done", daemon.log()
    holder = place.client()
    holder.call("Hold", "sss", "held", "an editor", "it is used")
    gamemode = GameMode(place.address)
    try:
        with helper(place):
            # It may be following already, or see this game when it comes to.
            gamemode.play(os.getpid())
            daemon.wait_state("held", "unloaded")
            name = game_holds(daemon)[0]
            assert daemon.load("host").result == "done"
            job = None
            if loads == "refuse":
                with pytest.raises(CallFailed, match=f"the GPUs are given away, {name} has them") as caught:
                    daemon.ask_load("other")
                assert caught.value.name == "Yielded"
            else:
                job = daemon.ask_load("other")
            if loads == "cpu":
                assert daemon.wait_job(job or 0).result == "done"
                assert daemon.model("other")["Device"] == "host"
            gamemode.stop(os.getpid())
            daemon.wait_state("held", "ready")
            if loads == "wait":
                assert daemon.wait_job(job or 0).result == "done"
                assert daemon.model("other")["Device"] == gpus.uuid()
            assert game_holds(daemon) == []
    finally:
        gamemode.close()
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_gpud_is_killed_while_a_game_runs(place: Place) -> None:
    """The next one hears of the game from the helper, and a model that was taken over leaves the GPUs again."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    gamemode = GameMode(place.address, os.getpid())
    try:
        with helper(place):
            wait_until(lambda: len(game_holds(daemon)) == 1, "it follows")
            daemon.kill9()
            daemon = place.start()
            wait_until(lambda: len(game_holds(daemon)) == 1, "it follows the next one")
            job = daemon.ask_load("model")
            gamemode.stop(os.getpid())
            assert daemon.wait_job(job).result == "done"
    finally:
        gamemode.close()
    daemon.aftermath()
