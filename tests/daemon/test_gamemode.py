"""A game registers with GameMode on the session bus: the GPUs are its own until it has ended, whoever tells that."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

from .harness import BOUND_S, Daemon, Place, engine
from .mock_machine import wait_until

NAME = "com.feralinteractive.GameMode"
PATH = "/com/feralinteractive/GameMode"


class GameMode:
    """The daemon of that name, as far as others see it. ``playing`` are the games of before somebody asks."""

    def __init__(self, address: str, *playing: int) -> None:
        self._connection = open_dbus_connection(address)
        self._playing = playing
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

    def close(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(BOUND_S)
        self._connection.close()


@contextmanager
def helper(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """What gpud-gamemode.service runs."""
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": place.address}
    command = [sys.executable, "-m", "gpud.cli", "--user", "_gamemode"]
    process = subprocess.Popen(command, env=environment)
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
