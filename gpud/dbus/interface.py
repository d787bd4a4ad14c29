"""gpud's interface as its XML file says it: what Introspect serves, and what the dispatcher checks calls against."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from gpud.core.record import Record

INTERFACE = "org.kernelcore.GpuD"
PATH = "/org/kernelcore/GpuD"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
PROPERTIES = "org.freedesktop.DBus.Properties"

_DOCTYPE = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""
_STANDARD = f"""<node>
  <interface name="{INTROSPECTABLE}">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="{PEER}">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
  <interface name="{PROPERTIES}">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="props" type="a{{sv}}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{{sv}}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
</node>"""


class Method(Record):
    """What a method takes and gives, as signatures."""

    takes: str
    gives: str


class Property(Record):
    """A property's type, and whether PropertiesChanged tells of it."""

    signature: str
    emits: bool


class Interface(Record):
    """One interface of an object."""

    name: str
    methods: Mapping[str, Method]
    signals: Mapping[str, str]
    properties: Mapping[str, Property]


class ObjectTree:
    """The one object, the interfaces it has, and the answers to Introspect for it and for the paths above it."""

    def __init__(self, root: ElementTree.Element) -> None:
        self._root = root
        self.interfaces = {element.attrib["name"]: _interface(element) for element in root.iter("interface")}
        parts = PATH.strip("/").split("/")
        self._above = {"/" + "/".join(parts[:depth]): child for depth, child in enumerate(parts)}
        self._written = ""

    @property
    def own(self) -> Interface:
        return self.interfaces[INTERFACE]

    def has(self, path: str) -> bool:
        return path == PATH or path in self._above

    def introspection(self, path: str) -> str:
        """Written when it is first asked for: nobody asks while gpud starts."""
        if path != PATH:
            return f'{_DOCTYPE}<node>\n  <node name="{self._above[path]}"/>\n</node>\n'
        if not self._written:
            ElementTree.indent(self._root)
            self._written = _DOCTYPE + ElementTree.tostring(self._root, encoding="unicode") + "\n"
        return self._written


def load_tree() -> ObjectTree:
    """Read the installed XML file."""
    # Not importlib.resources: it takes 13 ms of the daemon's start to import.
    return parse_tree((Path(__file__).parent.parent / "data" / f"{INTERFACE}.xml").read_text(encoding="utf-8"))


def parse_tree(text: str) -> ObjectTree:
    root = ElementTree.fromstring(text)  # noqa: S314 -- our own file
    for number, standard in enumerate(ElementTree.fromstring(_STANDARD)):  # noqa: S314 -- our own text
        root.insert(number, standard)
    return ObjectTree(root)


def _interface(element: ElementTree.Element) -> Interface:
    return Interface(
        name=element.attrib["name"],
        methods={
            method.attrib["name"]: Method(_signature(method, "in"), _signature(method, "out"))
            for method in element.iter("method")
        },
        signals={signal.attrib["name"]: _signature(signal, "") for signal in element.iter("signal")},
        properties={
            item.attrib["name"]: Property(item.attrib["type"], _emits(item)) for item in element.iter("property")
        },
    )


def _signature(element: ElementTree.Element, direction: str) -> str:
    return "".join(arg.attrib["type"] for arg in element.iter("arg") if arg.get("direction", "") == direction)


def _emits(element: ElementTree.Element) -> bool:
    return not any(
        note.attrib["name"] == "org.freedesktop.DBus.Property.EmitsChangedSignal"
        and note.attrib["value"] in ("const", "false")
        for note in element.iter("annotation")
    )
