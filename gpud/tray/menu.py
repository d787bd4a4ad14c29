"""The menu on the bus: com.canonical.dbusmenu, version 3, made of entries. Decides about no line and no action."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpud.cli.library import Message, Variant
from gpud.tray.served import Interface, Method, Refused
from gpud.tray.wishes import Wish
from gpud.tray.words import Entry

PATH = "/MenuBar"
NAME = "com.canonical.dbusmenu"
VERSION = 3

ROOT = 0
CLICKED = "clicked"


class Menu:
    """``on_wish`` gets what was clicked; ``send`` takes signals. A line keeps its number as long as it has its key, and
    no number is given out twice: a click on a line that has gone meanwhile never reaches another."""

    def __init__(self, on_wish: Callable[[Wish], None], send: Callable[[Message], None]) -> None:
        self._on_wish = on_wish
        self._send = send
        self._root = Entry("root")
        self._numbers: dict[str, int] = {"root": ROOT}
        self._entries: dict[int, Entry] = {ROOT: self._root}
        self._revision = 1
        self.interface = Interface(
            PATH,
            NAME,
            properties={
                "Version": ("u", lambda: VERSION),
                "TextDirection": ("s", lambda: "ltr"),
                "Status": ("s", lambda: "normal"),
                "IconThemePath": ("as", list),
            },
            methods={
                "GetLayout": Method(
                    ("parentId:i", "recursionDepth:i", "propertyNames:as"),
                    ("revision:u", "layout:(ia{sv}av)"),
                    self._get_layout,
                ),
                "GetGroupProperties": Method(
                    ("ids:ai", "propertyNames:as"), ("properties:a(ia{sv})",), self._get_group_properties
                ),
                "GetProperty": Method(("id:i", "name:s"), ("value:v",), self._get_property),
                "Event": Method(("id:i", "eventId:s", "data:v", "timestamp:u"), (), self._event),
                "EventGroup": Method(("events:a(isvu)",), ("idErrors:ai",), self._event_group),
                "AboutToShow": Method(("id:i",), ("needUpdate:b",), self._about_to_show),
                "AboutToShowGroup": Method(("ids:ai",), ("updatesNeeded:ai", "idErrors:ai"), self._about_to_show_group),
            },
            signals={
                "ItemsPropertiesUpdated": ("updatedProps:a(ia{sv})", "removedProps:a(ias)"),
                "LayoutUpdated": ("revision:u", "parent:i"),
                "ItemActivationRequested": ("id:i", "timestamp:u"),
            },
        )

    def show(self, entries: Sequence[Entry]) -> None:
        """From here on the menu is this one. What has changed is told: words as words, lines as a layout."""
        root = Entry("root", children=tuple(entries))
        if root == self._root:
            return
        before, old_root = self._entries, self._root
        self._root = root
        self._entries = {self._number(entry): entry for entry in _all(root)}
        if _shape(root) != _shape(old_root):
            self._revision += 1
            self._send(self.interface.signal("LayoutUpdated", self._revision, ROOT))
            return
        changed, lost = [], []
        for number, entry in self._entries.items():
            now, then = _properties(entry), _properties(before[number])
            different = {name: value for name, value in now.items() if then.get(name) != value}
            if different:
                changed.append([number, different])
            if gone := sorted(then.keys() - now.keys()):
                lost.append([number, gone])
        if changed or lost:
            self._send(self.interface.signal("ItemsPropertiesUpdated", changed, lost))

    def _number(self, entry: Entry) -> int:
        return self._numbers.setdefault(entry.key, len(self._numbers))

    def _entry(self, number: int) -> Entry:
        entry = self._entries.get(number)
        if entry is None:
            raise Refused(f"the menu has no line {number}: it may have gone; ask for the layout again")
        return entry

    # The methods of the interface ------------------------------------------------------------------------------------

    def _get_layout(self, parent: int, depth: int, names: list[str]) -> tuple[Any, ...]:
        return self._revision, self._layout(self._entry(parent), depth, names)

    def _layout(self, entry: Entry, depth: int, names: list[str]) -> list[Any]:
        """``depth`` levels below it, all of them for -1."""
        children = entry.children if depth else ()
        below = [Variant("(ia{sv}av)", self._layout(child, depth - 1, names)) for child in children]
        return [self._number(entry), _chosen(entry, names), below]

    def _get_group_properties(self, numbers: list[int], names: list[str]) -> tuple[Any, ...]:
        wanted = numbers or list(self._entries)
        # Those that are not there are left out, as the interface demands.
        known = [number for number in wanted if number in self._entries]
        return ([[number, _chosen(self._entries[number], names)] for number in known],)

    def _get_property(self, number: int, name: str) -> tuple[Any, ...]:
        properties = _properties(self._entry(number))
        if name not in properties:
            raise Refused(f'line {number} of the menu has no property "{name}"')
        return (properties[name],)

    def _event(self, number: int, kind: str, _data: Variant, _time: int) -> tuple[Any, ...]:
        entry = self._entry(number)
        if kind == CLICKED and entry.wish is not None:
            self._on_wish(entry.wish)
        return ()

    def _event_group(self, events: list[list[Any]]) -> tuple[Any, ...]:
        missing = [number for number, *_ in events if number not in self._entries]
        if events and len(missing) == len(events):
            raise Refused(f"the menu has none of the lines {', '.join(map(str, missing[:20]))}")
        for number, kind, data, time in events:
            if number not in missing:
                self._event(number, kind, data, time)
        return (missing,)

    def _about_to_show(self, number: int) -> tuple[Any, ...]:
        # It is always up to date: what changes is told when it changes.
        self._entry(number)
        return (False,)

    def _about_to_show_group(self, numbers: list[int]) -> tuple[Any, ...]:
        return [], [number for number in numbers if number not in self._entries]


def _all(entry: Entry) -> Iterator[Entry]:
    yield entry
    for child in entry.children:
        yield from _all(child)


def _shape(entry: Entry) -> tuple[Any, ...]:
    """Which lines there are and where, whatever they say."""
    return (entry.key, *(_shape(child) for child in entry.children))


def _properties(entry: Entry) -> dict[str, Variant]:
    """Only those that differ from what the interface takes for granted."""
    if entry.key == "root":
        return {"children-display": Variant("s", "submenu")}
    if entry.is_separator:
        return {"type": Variant("s", "separator")}
    # An underline would mark the next letter as a key to press.
    found = {"label": Variant("s", entry.label.replace("_", "__"))}
    if entry.children:
        found["children-display"] = Variant("s", "submenu")
    elif entry.wish is None:
        found["enabled"] = Variant("b", False)
    if entry.checked is not None:
        found["toggle-type"] = Variant("s", "checkmark")
        found["toggle-state"] = Variant("i", int(entry.checked))
    return found


def _chosen(entry: Entry, names: list[str]) -> dict[str, Variant]:
    properties = _properties(entry)
    return {name: properties[name] for name in names if name in properties} if names else properties
