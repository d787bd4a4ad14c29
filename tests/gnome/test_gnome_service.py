"""The extension's side of the bus, in gjs as the shell has it, with a real gpud on the other side."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.harness import NAME, Place
from dbus.private_bus import PrivateBus
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from .gjs_programs import BOUND_S, Program

GPUD_OBJECT = DBusAddress("/org/kernelcore/GpuD", interface="org.freedesktop.DBus.Properties")
MONITORING = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Monitoring")


AWAY = {"state": None, "away": True}
"""What is known where no gpud runs."""

COMING = {"state": None, "away": False}
"""One is there, and has not answered yet."""


def watcher(build: Path, release: str, *, system: str, session: str) -> Program:
    addresses = {"DBUS_SYSTEM_BUS_ADDRESS": system, "DBUS_SESSION_BUS_ADDRESS": session}
    return Program(build, release, "service_program", addresses)


@pytest.fixture
def program(build: Path, release: str, bus: PrivateBus, empty_bus: PrivateBus) -> Iterator[Program]:
    """The extension, which knows the system's gpud alone."""
    with watcher(build, release, system=bus.address, session=empty_bus.address) as made:
        assert made.wait(lambda said: said["away"]) == AWAY
        yield made


def test_the_daemon_comes_and_goes_and_comes_back(program: Program, place: Place) -> None:
    """kill -9 of gpud: the extension knows at once, and takes up the next one without being told to."""
    daemon = place.start()
    assert program.hear() == COMING
    assert program.hear() == {"state": "idle", "loaded": [], "gpus": 1, "models": ["spare", "tiny"], "others": 0}
    daemon.kill9()
    # Figures of the machine may have changed before.
    assert program.wait(lambda said: said["state"] is None) == AWAY
    place.start()
    assert program.hear() == COMING
    assert program.hear()["state"] == "idle"
    assert program.errors() == ""


def test_what_is_loaded_is_followed(program: Program, place: Place) -> None:
    """Somebody else loads and unloads: each change arrives by itself."""
    daemon = place.start()
    daemon.load("tiny")
    program.wait(lambda said: said.get("loaded") == ["tiny"])
    daemon.unload("tiny")
    program.wait(lambda said: said.get("loaded") == [])


def test_a_click_loads_and_unloads(program: Program, place: Place) -> None:
    """The answer is the job, and how it ends comes after it."""
    daemon = place.start()
    program.wait(lambda said: said.get("state") == "idle")
    for method, state in (("Load", "ready"), ("Unload", "unloaded")):
        program.say(method, ["s", "tiny"])
        job = program.wait(lambda said: "answer" in said)["answer"][0]
        ended = program.wait(lambda said, job=job: said.get("job") == job)
        assert (ended["model"], ended["result"]) == ("tiny", "done")
        assert daemon.state("tiny") == state


def test_a_refusal_arrives_as_the_daemon_said_it(program: Program, place: Place) -> None:
    """Its name for the program, and its sentence for the person without a program's prefix."""
    place.start()
    program.wait(lambda said: said.get("state") == "idle")
    program.say("Load", ["s", "nobody"])
    refusal = program.wait(lambda said: "text" in said)
    assert refusal["name"] == f"{NAME}.Error.NoSuchModel"
    assert '"nobody"' in refusal["text"]
    assert "GDBus.Error" not in refusal["text"]


def test_a_daemon_that_says_nothing_has_a_name_too(program: Program) -> None:
    """The library gives up by itself, without a name from the bus: it is the same as no reply."""
    program.say("explain", ["TIMED_OUT", "Timeout was reached"])
    assert program.hear() == {"name": "org.freedesktop.DBus.Error.NoReply", "text": "Timeout was reached"}
    program.say("explain", ["CLOSED", "The connection is closed"])
    assert program.hear() == {"name": "", "text": "The connection is closed"}


def test_a_question_is_not_asked_of_a_daemon_that_died(program: Program, place: Place) -> None:
    """An answer that never comes is waited for by nobody, and the next daemon is asked afresh."""
    daemon = place.start()
    program.wait(lambda said: said.get("state") == "idle")
    # So that the question is on its way when it dies.
    daemon.signal(19)
    program.say("refresh", [])
    daemon.kill9()
    assert program.wait(lambda said: "state" in said and said["state"] is None) == AWAY
    place.start()
    assert program.hear() == COMING
    assert program.hear()["state"] == "idle"


def test_only_a_click_may_open_a_dialog(program: Program, place: Place, bus: PrivateBus) -> None:
    """What a person clicked may ask for a password; looking may not. Neither starts gpud."""
    place.start()
    program.wait(lambda said: said.get("state") == "idle")
    with open_dbus_connection(bus.address) as monitor:
        rules = [f"type='method_call',interface='{NAME}'"]
        message = new_method_call(MONITORING, "BecomeMonitor", "asu", (rules, 0))
        monitor.send_and_get_reply(message, timeout=BOUND_S)
        program.say("refresh", [])
        program.say("Load", ["s", "tiny"])
        heard: dict[str, MessageFlag] = {}
        while not {"Overview", "Load"} <= set(heard):
            header = monitor.receive(timeout=BOUND_S).header
            if header.message_type is MessageType.method_call:
                heard[header.fields[HeaderFields.member]] = header.flags
    assert heard["Load"] == MessageFlag.no_auto_start | MessageFlag.allow_interactive_authorization
    assert heard["Overview"] == MessageFlag.no_auto_start
    program.wait(lambda said: said.get("result") == "done")


def test_of_very_many_models_few_are_asked_for(program: Program, bus: PrivateBus) -> None:
    """Where there are very many gpud only says that something about them has changed: one question at a time, and one
    more when something has changed meanwhile; each says how many are to be in its answer.
    """
    with open_dbus_connection(bus.address) as gpud:
        gpud.send_and_get_reply(message_bus.RequestName(NAME), timeout=BOUND_S)
        assert answer(gpud, "Overview", overview("old", 4990)) == (2, "", [])
        assert program.hear() == COMING
        assert program.hear()["models"] == ["old"]
        for _ in range(3):
            gpud.send(new_signal(GPUD_OBJECT, "PropertiesChanged", "sa{sv}as", (NAME, {}, ["Models"])))
        first = question(gpud, "Overview")
        # All three were heard before this one is answered: an answer to a question of a client's stands behind them.
        program.say("ListQueue", [])
        queue = question(gpud, "ListQueue")
        gpud.send(new_method_return(first, "a{sv}", (overview("older", 4990),)))
        gpud.send(new_method_return(queue, "aa{sv}", ([],)))
        answer(gpud, "Overview", overview("new", 4991))
        assert program.wait(lambda said: said.get("models") == ["new"])["others"] == 4991
        # A figure of the devices brings no question about models, and nobody asks a third time for them.
        used = {"VramUsed": ("t", 5)}
        gpud.send(new_signal(GPUD_OBJECT, "PropertiesChanged", "sa{sv}as", (NAME, used, [])))
        gpud.send(new_method_return(question(gpud, "ListGpus"), "aa{sv}", ([{"Uuid": ("s", "GPU-1")}],)))
        assert program.wait(lambda said: said.get("gpus") == 1)["models"] == ["new"]


def test_what_is_searched_for_is_not_taken_for_what_there_is(program: Program, bus: PrivateBus) -> None:
    """With a search a signal with all models brings a question, whose answer has those that were found."""
    with open_dbus_connection(bus.address) as gpud:
        gpud.send_and_get_reply(message_bus.RequestName(NAME), timeout=BOUND_S)
        answer(gpud, "Overview", overview("one", 3))
        program.wait(lambda said: said.get("models") == ["one"])
        program.say("want", {"search": "ne", "names": ["two"]})
        assert answer(gpud, "Overview", overview("nerd", 0)) == (2, "ne", ["two"])
        program.wait(lambda said: said.get("models") == ["nerd"])
        models = {"Models": overview("all", 0)["Models"]}
        gpud.send(new_signal(GPUD_OBJECT, "PropertiesChanged", "sa{sv}as", (NAME, models, [])))
        answer(gpud, "Overview", overview("next", 0))
        assert program.hear()["models"] == ["nerd"]
        program.wait(lambda said: said.get("models") == ["next"])
        program.say("want", {"search": ""})
        answer(gpud, "Overview", overview("one", 3))
        program.wait(lambda said: said.get("others") == 3)
        gpud.send(new_signal(GPUD_OBJECT, "PropertiesChanged", "sa{sv}as", (NAME, models, [])))
        assert program.wait(lambda said: said.get("models") == ["all"])["others"] == 0


def overview(model: str, others: int) -> dict[str, tuple[str, object]]:
    lists = {"Models": ("aa{sv}", [{"Id": ("s", model)}]), "Gpus": ("aa{sv}", []), "Holds": ("aa{sv}", [])}
    return {"State": ("s", "idle"), "LoadedModels": ("as", []), "Others": ("u", others), **lists}


def question(gpud: DBusConnection, member: str) -> Message:
    """The next call of the widget's, which is to be this one."""
    while True:
        message = gpud.receive(timeout=BOUND_S)
        if message.header.message_type is MessageType.method_call:
            assert message.header.fields[HeaderFields.member] == member
            return message


def answer(gpud: DBusConnection, member: str, value: dict[str, tuple[str, object]]) -> tuple[object, ...]:
    """Answers the next call of the widget's; what it asked for."""
    asked = question(gpud, member)
    gpud.send(new_method_return(asked, "a{sv}", (value,)))
    return tuple(asked.body)


def test_the_users_own_daemon_serves_where_the_system_has_none(
    build: Path, release: str, bus: PrivateBus, empty_bus: PrivateBus, place: Place
) -> None:
    """It is on the session bus."""
    place.start()
    with watcher(build, release, system=empty_bus.address, session=bus.address) as program:
        # Whichever bus is heard of first, it is away at no time.
        assert program.wait(lambda said: said != COMING)["state"] == "idle"


def test_nothing_stays_on_the_bus(program: Program, place: Place, bus: PrivateBus) -> None:
    """After disable() the connection, which is the shell's own, waits for nothing of gpud's any more."""
    place.start()
    program.wait(lambda said: said.get("state") == "idle")
    assert match_rules(bus, program.pid)
    program.say("close", [])
    program.wait(lambda said: said.get("closed"))
    # An answer to a later message from the same connection: what it unsubscribed before has been done by then.
    program.say("close", [])
    program.wait(lambda said: said.get("closed"))
    assert match_rules(bus, program.pid) == []


def match_rules(bus: PrivateBus, pid: int) -> list[str]:
    """What the connections of a process wait for at the bus and that is about gpud."""
    stats = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Debug.Stats")
    daemon = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
    with open_dbus_connection(bus.address) as connection:

        def ask(address: DBusAddress, member: str, *values: str) -> object:
            message = new_method_call(address, member, "s" if values else None, values)
            return connection.send_and_get_reply(message, timeout=BOUND_S).body[0]

        rules = ask(stats, "GetAllMatchRules")
        assert isinstance(rules, dict)
        own = [name for name in rules if ask(daemon, "GetConnectionUnixProcessID", name) == pid]
        owner = ask(daemon, "GetNameOwner", NAME)
        return [rule for name in own for rule in rules[name] if NAME in rule or f"'{owner}'" in rule]
