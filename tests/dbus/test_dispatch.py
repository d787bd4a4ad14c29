"""The object on the bus: what it answers to every kind of call, with each library."""

import asyncio
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, MessageFlag, MessageType, new_method_call

from gpud.core import errors as core_errors
from gpud.core.facts import State
from gpud.dbus import errors
from gpud.dbus.bus import load_library
from gpud.dbus.dispatch import Dispatcher, Reply
from gpud.dbus.interface import INTERFACE, load_tree
from gpud.dbus.limits import CallerLimits, Meter
from gpud.dbus.render import INTERFACE_VERSION
from gpud.dbus.service import BusUnavailable, NameTaken, Service
from gpud.dbus.shown import Shown
from gpud.dbus.wall_clock import WallClock

from .fake_engine import FakeEngine, status
from .peers import NAME, PATH, busctl, nobody, peer, serving, tool
from .private_bus import NOBODY, TOP, PrivateBus
from .test_signals import Anything

STANDARD = "org.freedesktop.DBus.Error."
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"


def test_handlers_that_do_not_fit_the_xml_are_no_service(engine: FakeEngine) -> None:
    """The XML is the table: a daemon with a method too few or too many does not start."""
    library, limits, tree = load_library(), CallerLimits(), load_tree()
    shown = Shown(engine.snapshot, WallClock(), "1", library.encode_body)
    handlers = dict.fromkeys(tree.own.methods, lambda _request: Reply())

    def make() -> Dispatcher:
        return Dispatcher(tree, handlers, shown, Meter(limits), lambda: 0.0, library.encode_body)

    make()
    handlers["Fly"] = handlers.pop("Load")
    with pytest.raises(ValueError, match=r"do not fit the interface: \['Fly', 'Load'\]"):
        make()


def test_an_answer_is_put_together_once_for_each_change(engine: FakeEngine) -> None:
    """As long as the engine shows the same and the wall clock was not set, the bytes are the same object."""
    now = [1_000_000.0]
    clock = WallClock(lambda: now[0])
    engine.models["tiny"] = status("tiny", State.READY, unload_at_s=1300.0)
    shown = Shown(engine.snapshot, clock, "1", load_library().encode_body)
    answers = (shown.status, shown.models, shown.gpus, shown.all_properties, shown.properties)
    before = [answer() for answer in answers]
    engine.now_s += 5.0
    now[0] += 5.0
    assert all(answer() is old for answer, old in zip(answers, before, strict=True))
    engine.touch("tiny", in_flight=1)
    assert shown.properties()["ActiveModel"] == ("s", "tiny")
    assert all(answer() is not old for answer, old in zip(answers, before, strict=True))
    due = shown.properties()["NextUnloadUSec"].value
    now[0] += 3600.0
    assert shown.properties()["NextUnloadUSec"].value == due + 3_600_000_000


def test_a_call_that_is_too_large_is_told_what_of_it(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Its arguments, or its header: with the number and its limit, over a real bus."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            refused = await client.refused("Load", "s", "x" * (1 << 20))
            assert refused.name == STANDARD + "LimitsExceeded"
            assert refused.text == "cannot read a call of Load: its arguments have 1048581 bytes, the limit is 262144"
            refused = await client.refused("Load", "s", "tiny", path="/a" * (1 << 20))
            assert refused.name == STANDARD + "LimitsExceeded"
            assert "cannot read a call of a method: its header has 2097" in refused.text
            assert await client.call("Load", "s", "tiny") == 1

    run(scenario())


def test_every_error_has_its_name_on_the_bus() -> None:
    """An error of the core is called on the bus as it is called in the code, or as D-Bus itself calls such a thing; the
    document says so.
    """
    classes = [core_errors.GpudError]
    for known in classes:
        classes.extend(known.__subclasses__())
    told = (TOP / "docs" / "dbus.md").read_text()
    standard = set()
    for known in classes:
        if known.__module__ != core_errors.__name__:
            continue
        prefix, _, last = errors.name_of(known.code).rpartition(".")
        assert f"`{last}`" in told, f"docs/dbus.md does not name {last}"
        if prefix != f"{INTERFACE}.Error":
            assert prefix == "org.freedesktop.DBus.Error"
            standard.add(known.code)
        else:
            assert last == known.__name__
    assert standard == {"failed", "invalid-arguments", "limits-exceeded", "access-denied", "interaction-required"}


def test_the_document_names_every_method_and_signal() -> None:
    """Whoever reads docs/dbus.md learns of all that can be called and heard; the XML says the rest."""
    told = (TOP / "docs" / "dbus.md").read_text()
    own = load_tree().own
    assert [name for name in (*own.methods, *own.signals) if f"`{name}" not in told] == []


def test_the_version_is_the_same_wherever_it_stands() -> None:
    """In the property, in the document, and in the XML with what came with it."""
    version = INTERFACE_VERSION
    xml = (TOP / "gpud" / "data" / f"{INTERFACE}.xml").read_text()
    for words in (f"of gpud, version {version}.", f"Since version {version}: ", f"InterfaceVersion: {version}."):
        assert words in xml
    assert f"`InterfaceVersion` = {version}" in (TOP / "docs" / "dbus.md").read_text()


def test_the_policy_directory_and_the_package_hold_the_same_xml() -> None:
    """There is one source: the copy for the system is the file that the daemon reads."""
    link = TOP / "dbus-policy" / f"{INTERFACE}.xml"
    assert link.resolve() == Path(TOP / "gpud" / "data" / f"{INTERFACE}.xml").resolve()


def test_introspect_serves_the_xml_with_its_annotations(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """A client sees all members, which property changes silently, and the standard interfaces."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            text = await client.call("Introspect", interface=INTROSPECTABLE)
            root = ElementTree.fromstring(text)
            assert text.startswith("<!DOCTYPE node")
            interfaces = {element.attrib["name"]: element for element in root.iter("interface")}
            assert set(interfaces) == {NAME, PROPERTIES, INTROSPECTABLE, PEER}
            served = {(item.tag, item.get("name")) for item in interfaces[NAME]}
            tree = load_tree().own
            assert {name for kind, name in served if kind == "method"} == set(tree.methods)
            assert {name for kind, name in served if kind == "signal"} == set(tree.signals)
            silent = root.find(".//property[@name='Utilization']/annotation")
            assert silent is not None and silent.get("value") == "false"

    run(scenario())


@pytest.mark.parametrize(("path", "child"), [("/", "org"), ("/org", "kernelcore"), ("/org/kernelcore", "GpuD")])
def test_the_paths_above_the_object_lead_to_it(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, path: str, child: str
) -> None:
    """Tools that walk the tree from its root find the object, and nothing but it."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            root = ElementTree.fromstring(await client.call("Introspect", interface=INTROSPECTABLE, path=path))
            assert [(item.tag, item.get("name")) for item in root] == [("node", child)]

    run(scenario())


def test_peer_answers_on_every_path(run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str) -> None:
    """Ping and GetMachineId belong to the connection, not to an object."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            assert await client.call("Ping", interface=PEER) is None
            assert await client.call("Ping", interface=PEER, path="/anywhere") is None
            _, expected, _ = await tool("cat", "/etc/machine-id")
            assert await client.call("GetMachineId", interface=PEER) == expected

    run(scenario())


def test_calls_that_do_not_fit_get_the_standard_errors(
    run: Any, open_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Unknown object, interface, method, property and wrong arguments are told apart."""

    async def scenario() -> None:
        async with serving(open_bus.address, engine, library=library), peer(open_bus.address) as client:
            assert (await client.refused("Status", path="/org/other")).name == STANDARD + "UnknownObject"
            assert (await client.refused("Status", path="/org")).name == STANDARD + "UnknownInterface"
            assert (await client.refused("Status", interface="a.b")).name == STANDARD + "UnknownInterface"
            assert (await client.refused("Fly")).name == STANDARD + "UnknownMethod"
            assert (await client.refused("Fly", interface=None)).name == STANDARD + "UnknownMethod"
            wrong = await client.refused("Load", "u", 7)
            assert wrong.name == STANDARD + "InvalidArgs"
            assert wrong.text == 'Load was called with arguments "u", it takes "s"'
            for arguments in ((NAME, "Nothing"), (PEER, "State")):
                refused = await client.refused("Get", "ss", *arguments, interface=PROPERTIES)
                assert refused.name == STANDARD + "UnknownProperty"
            refused = await client.refused("Get", "ss", "a.b", "State", interface=PROPERTIES)
            assert refused.name == STANDARD + "UnknownInterface"
            refused = await client.refused("GetAll", "s", "a.b", interface=PROPERTIES)
            assert refused.name == STANDARD + "UnknownInterface"

    run(scenario())


def test_a_call_without_interface_finds_its_method(
    run: Any, open_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """The interface field is optional: where the member is unique, it is found."""

    async def scenario() -> None:
        async with serving(open_bus.address, engine, library=library), peer(open_bus.address) as client:
            assert (await client.call("Status", interface=None))["State"] == ("s", "idle")
            assert await client.call("Ping", interface=None) is None
            assert "interface" in await client.call("Introspect", interface=None)

    run(scenario())


def test_properties_are_read_and_cannot_be_set(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Get and GetAll (also with the empty interface) tell the truth; Set is refused as read-only."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            assert await client.get("Version") == "1.2.3"
            assert await client.get("VramBudget") == 23 << 30
            everything = await client.call("GetAll", "s", "", interface=PROPERTIES)
            assert everything == await client.call("GetAll", "s", NAME, interface=PROPERTIES)
            assert {name: value[0] for name, value in everything.items()} == {
                name: prop.signature for name, prop in load_tree().own.properties.items()
            }
            assert await client.call("GetAll", "s", PEER, interface=PROPERTIES) == {}
            refused = await client.refused("Set", "ssv", NAME, "State", ("s", "idle"), interface=PROPERTIES)
            assert refused.name == STANDARD + "PropertyReadOnly"
            refused = await client.refused("Set", "ssv", NAME, "Color", ("s", "red"), interface=PROPERTIES)
            assert refused.name == STANDARD + "UnknownProperty"

    run(scenario())


def test_a_caller_that_wants_no_reply_gets_none(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """NO_REPLY_EXPECTED: the call is carried out, and neither a result nor an error comes back."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            seen: asyncio.Queue[Any] = asyncio.Queue()
            silent = [new_method_call(_address(), "Load", "s", ("tiny",)), new_method_call(_address(), "Fly")]
            for message in silent:
                message.header.flags = MessageFlag.no_reply_expected
                await client.router.send(message)
            everything = Anything()
            with client.router.filter(everything, queue=seen):
                # A reply to either would come before the reply to this: one connection, one order.
                assert await client.call("Reload") is None
            replies = [item for item in _drain(seen) if item.header.message_type is not MessageType.signal]
            assert replies == []
            assert [call[1] for call in engine.asked("load")] == ["tiny"]

    run(scenario())


def test_an_internal_error_is_answered_without_its_traceback(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer learns that it failed; the traceback goes to the log alone."""
    engine.fail = RuntimeError("secret detail")

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            refused = await client.refused("Load", "s", "tiny")
            assert refused.name == STANDARD + "Failed"
            assert "secret" not in refused.text and "File" not in refused.text

    run(scenario())
    assert "secret detail" in caplog.text


def test_a_text_that_the_bus_would_not_take_does_not_cost_the_connection(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """A NUL or half a surrogate pair in an engine's last words is replaced before it is sent."""
    engine.touch("tiny", error="bad \0 and \udcff")

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            models = await client.call("ListModels")
            assert models[0]["Error"] == ("s", "bad \N{REPLACEMENT CHARACTER} and ?")
            assert await client.get("State") == "idle"

    run(scenario())


def test_a_stopping_service_answers_the_calls_that_it_still_works_on(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """A call in progress when the daemon ends gets an error at once, not a time-out."""
    entered, never = asyncio.Event(), asyncio.Event()

    class Stuck(FakeEngine):
        async def reload(self) -> None:
            entered.set()
            await never.wait()

    async def scenario() -> None:
        async with peer(private_bus.address) as client:
            async with serving(private_bus.address, Stuck(), library=library):
                call = asyncio.create_task(client.refused("Reload"))
                await asyncio.wait_for(entered.wait(), 50)
            assert (await call).name == STANDARD + "Failed"

    run(scenario())


def test_busctl_and_gdbus_understand_the_service(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Two clients that share no code with us introspect, read, and call."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library):
            status, shown, _ = await busctl(private_bus.address, "introspect", NAME, PATH)
            assert status == 0
            assert any(line.split()[:4] == [".Load", "method", "s", "u"] for line in shown.splitlines())
            assert any(line.startswith(".Version") and line.rstrip().endswith("const") for line in shown.splitlines())
            assert await busctl(private_bus.address, "call", NAME, PATH, NAME, "Load", "s", "tiny") == (0, "u 1", "")
            status, tree, _ = await busctl(private_bus.address, "tree", NAME)
            assert status == 0 and tree.splitlines()[-1].endswith(PATH)
            where = ("--address", private_bus.address, "--dest", NAME, "--object-path", PATH)
            status, shown, complaint = await tool("gdbus", "call", *where, "--method", f"{NAME}.Status")
            assert status == 0, complaint
            assert "'InterfaceVersion': <uint32 5>" in shown
            status, shown, complaint = await tool("gdbus", "introspect", *where)
            assert status == 0, complaint
            assert "ModelStateChanged(s model," in shown

    run(scenario())


def test_a_second_service_is_told_who_owns_the_name(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The name cannot be taken twice, and the message names the owner and its PID."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine) as first:
            with pytest.raises(NameTaken) as refused:
                async with serving(private_bus.address, FakeEngine()):
                    raise AssertionError("two services own one name")
            assert refused.value.message == f"{NAME} already owned by {first.unique_name} (pid {os.getpid()})"

    run(scenario())


def test_a_user_without_the_right_to_the_name_is_told_what_is_missing(run: Any, private_bus: PrivateBus) -> None:
    """The bus policy lets only gpud and root be gpud."""

    async def scenario() -> None:
        service = Service(
            FakeEngine(),
            shells=nobody(),
            user_mode=False,
            limits=CallerLimits(),
            version="1",
            address=private_bus.address,
        )
        os.seteuid(NOBODY)
        try:
            with pytest.raises(BusUnavailable, match=f"the bus refuses it to uid {NOBODY}.*install {NAME}.conf"):
                await service.start()
        finally:
            os.seteuid(0)
            await service.close()

    run(scenario())


def _address() -> Any:
    return DBusAddress(PATH, NAME, NAME)


def _drain(queue: "asyncio.Queue[Any]") -> list[Any]:
    found = []
    while not queue.empty():
        found.append(queue.get_nowait())
    return found
