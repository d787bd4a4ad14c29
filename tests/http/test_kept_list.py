"""Lists of models: each entry is made once, as long as nothing about its model changes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from engine.catalogue import found
from engine.test_library import House, house

from gpud.core.facts import ModelStatus
from gpud.core.record import replace
from gpud.http.kept_list import KeptList, written
from gpud.http.known_models import Known, KnownModels

Run = Callable[[Awaitable[None]], None]


class Counted:
    """Makes entries, and remembers of whom."""

    def __init__(self, place: House) -> None:
        self.made: list[str] = []
        self.list = KeptList(place.engine, KnownModels(place.engine), self._encode)

    def _encode(self, status: ModelStatus, known: Known) -> bytes:
        self.made.append(status.model.name)
        return f'"{status.model.name} {status.state} {known.size_bytes} {",".join(known.entry.tags)}"'.encode()

    async def ask(self, statuses: Any) -> tuple[list[str], bytes]:
        """Of whom entries were made for it, and the list."""
        before = len(self.made)
        parts = await self.list.of(statuses)
        return sorted(self.made[before:]), b"".join(written(parts))


def test_an_entry_is_made_when_something_about_its_model_changes(run: Run) -> None:
    """Its state, what is said of it, its file; and never otherwise."""

    async def scenario() -> None:
        async with house(found("a"), found("b")) as place:
            await place.library.scan()
            await place.library.sized()
            counted = Counted(place)

            def now() -> tuple[ModelStatus, ...]:
                return tuple(sorted(place.engine.snapshot().models, key=lambda one: one.model.name))

            names, text = await counted.ask(now())
            assert (names, text) == (["a", "b"], b'["a cold 1073741824 ","b cold 1073741824 "]')
            assert await counted.ask(now()) == ([], text)
            assert await counted.ask(now()[:1]) == ([], b'["a cold 1073741824 "]')
            assert await counted.ask(tuple(reversed(now()))) == ([], b'["b cold 1073741824 ","a cold 1073741824 "]')
            other = replace(now()[1], in_flight=1)
            assert (await counted.ask((now()[0], other)))[0] == ["b"]
            await place.library.annotate("a", tags=("new",))
            names, text = await counted.ask(now())
            assert names == ["a", "b"] and b"a cold 1073741824 new" in text
            place.shelves.models = [found("a", stamp="2", size_bytes=5)]
            await place.library.scan()
            await place.library.sized()
            names, text = await counted.ask(now())
            assert (names, text) == (["a"], b'["a cold 5 new"]')
            assert await asyncio.gather(counted.ask(now()), counted.ask(now())) == [([], text)] * 2

    run(scenario())


def test_a_model_that_goes_while_it_is_asked_for_is_told_of_once_more(run: Run) -> None:
    """As it was: nobody's list ends for it."""

    async def scenario() -> None:
        async with house(found("a"), found("b")) as place:
            await place.library.scan()
            counted = Counted(place)
            statuses = place.engine.snapshot().models
            place.shelves.models = [found("a")]
            await place.library.scan()
            _, text = await counted.ask(statuses)
            assert text.count(b"cold") == 2 and b"b cold 0 " in text

    run(scenario())


def test_what_is_written_is_json() -> None:
    """What stands there as it is, and lists of none, one and several."""
    parts = [b'{"a":1}', b"2", b"[3]"]
    text = b"".join(written(b'{"none":', [], b',"one":', parts[:1], b',"several":', parts, b"}"))
    assert text == b'{"none":[],"one":[{"a":1}],"several":[{"a":1},2,[3]]}'
    assert b"".join(written(tuple(parts))) == b'[{"a":1},2,[3]]'
    assert b"".join(written([])) == b"[]"
