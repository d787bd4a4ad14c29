"""What models there are, on the bus: listed, looked for, spoken of, and told of when others come."""

import asyncio
from typing import Any

import pytest

from gpud.core.catalogue import Entry, Format, Found, Place, Scanned, Source, Trouble
from gpud.core.errors import InvalidOption, NoSuchModel
from gpud.core.events import CatalogueChanged
from gpud.core.record import replace

from .fake_engine import FakeEngine, NothingKnown
from .peers import NAME, Polkit, peer, serving
from .private_bus import NOBODY, PrivateBus

OWN = f"{NAME}.Error."
TINY = Entry(
    7,
    "tiny",
    Found(
        (Place("/m/tiny.gguf", Source.FOLDER, "tiny"), Place("/hub/\udcff\n.gguf", Source.HUGGINGFACE, "org/tiny")),
        Format.GGUF,
        "1",
        5 << 30,
        architecture="llama",
        quantization="Q4_K_M",
        trained_context=8192,
    ),
    aliases=("small",),
    tags=("mine",),
    estimate_bytes=6 << 30,
    usage_count=3,
    last_used_us=1_700_000_000_000_000,
    load_s=1.5,
)


class FakeLibrary(NothingKnown):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"tiny": TINY}
        self.calls: list[Any] = []
        self.version = self.uses_kept = 0
        self.scanned = Scanned(1, ("tiny",), (), (), (Trouble("/m/bad.gguf", "is no GGUF file"),), 2, 1, 0.25, 5)

    async def entries(self, names: Any = None, *, everything: bool = False) -> tuple[Entry, ...]:
        self.calls.append(("entries", names, everything))
        return tuple(entry for name, entry in self.kept.items() if names is None or name in names)

    async def scan(self) -> Scanned:
        return self.scanned

    async def annotate(self, name: str, **said: Any) -> Entry:
        if said.get("priority") == "urgent":
            raise InvalidOption('"urgent" is no priority', hint="one of low, normal, high, critical")
        self.calls.append(("annotate", name, said))
        return replace(self.kept[name], **said)

    async def forget(self, name: str) -> None:
        if name not in self.kept:
            raise NoSuchModel(f'there is no model "{name}"')
        self.calls.append(("forget", name))


class CatalogEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.library = FakeLibrary()
        self.kept_uses = 0

    def resolve(self, name: str) -> str:
        name = {"small": "tiny"}.get(name, name)
        if name not in self.models:
            raise NoSuchModel(f'there is no model "{name}"', hint='did you mean "tiny"?')
        return name

    async def keep_uses(self) -> None:
        self.kept_uses += 1


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, (_, value) in record.items()}


def test_what_is_known_of_models_is_listed(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Of those that are named, by aliases, too, or of all; uses until now count; paths survive whatever they hold."""

    async def scenario() -> None:
        engine = CatalogEngine()
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            (one,) = map(plain, await client.call("ListCatalog", "as", ["small"]))
            assert engine.kept_uses == 1 and engine.library.calls == [("entries", ["tiny"], True)]
            expected = {
                "Id": "tiny",
                "Number": 7,
                "Paths": ["/m/tiny.gguf", "/hub/\\xff\n.gguf"],
                "Sources": ["folder", "huggingface"],
                "Architecture": "llama",
                "TrainedContext": 8192,
                "EstimateBytes": 6 << 30,
                "UsageCount": 3,
                "LoadUSec": 1_500_000,
                "Tags": ["mine"],
            }
            assert expected.items() <= one.items()
            for _ in range(2):
                assert list(map(plain, await client.call("ListCatalog", "as", []))) == [one]
            assert engine.library.calls[1:] == [("entries", None, True)]
            engine.library.kept["tiny"] = replace(TINY, usage_count=4)
            engine.library.uses_kept += 1
            (one,) = map(plain, await client.call("ListCatalog", "as", []))
            assert one["UsageCount"] == 4
            engine.library.kept["tiny"] = replace(TINY, notes="new")
            engine.library.version += 1
            (one,) = map(plain, await client.call("ListCatalog", "as", []))
            assert one["Notes"] == "new"

    run(scenario())


def test_a_scan_answers_with_what_it_found(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Numbers of all, names of the first hundred."""

    async def scenario() -> None:
        engine = CatalogEngine()
        engine.library.scanned = replace(engine.library.scanned, gone=tuple(f"m{number}" for number in range(150)))
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            told = plain(await client.call("Scan"))
            assert (told["Models"], told["New"], told["NewCount"]) == (1, ["tiny"], 1)
            assert (len(told["Gone"]), told["GoneCount"]) == (100, 150)
            assert told["Problems"] == [("/m/bad.gguf", "is no GGUF file")] and told["ScanUSec"] == 250_000

    run(scenario())


def test_what_is_said_of_a_model_is_passed_on(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Only what is given; what cannot be is refused with what can."""

    async def scenario() -> None:
        engine = CatalogEngine()
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            said = {"tags": ("as", ["a", "b"]), "notes": ("s", "good")}
            await client.call("Annotate", "sa{sv}", "small", said)
            assert engine.library.calls == [("annotate", "tiny", {"tags": ("a", "b"), "notes": "good"})]
            await client.call("Forget", "s", "tiny")
            assert engine.library.calls[-1] == ("forget", "tiny")

    run(scenario())


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (("ListCatalog", "as", ["tny"]), f"{OWN}NoSuchModel", 'did you mean "tiny"'),
        (("ListCatalog", "as", ["x"] * 501), "InvalidArgs", "501 names are more than the limit of 500"),
        (("Annotate", "sa{sv}", "tiny", {"priority": ("s", "urgent")}), f"{OWN}InvalidOption", "one of low"),
        (("Annotate", "sa{sv}", "tiny", {"colour": ("s", "red")}), f"{OWN}InvalidOption", '"aliases"'),
        (("Annotate", "sa{sv}", "tiny", {"tags": ("s", "a")}), f"{OWN}InvalidOption", 'its type is "as"'),
        (("Annotate", "sa{sv}", "", {}), "InvalidArgs", "name is empty"),
        (("Forget", "s", "gone"), f"{OWN}NoSuchModel", 'there is no model "gone"'),
    ],
)
def test_bad_calls_are_told_what_is_wrong(
    run: Any, private_bus: PrivateBus, call: tuple[Any, ...], error: str, word: str
) -> None:
    """By the error's name and its text."""

    async def scenario() -> None:
        engine = CatalogEngine()
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            refused = await client.refused(*call)
            assert refused.name.endswith(error) and word in refused.text
            assert not [one for one in engine.library.calls if one[0] != "entries"]

    run(scenario())


def test_only_who_may_manage_speaks_of_models(run: Any, private_bus: PrivateBus) -> None:
    """Seeing is for everybody, looking for models for whom may load, the rest for whom polkit lets manage."""

    async def scenario() -> None:
        engine = CatalogEngine()
        polkit = Polkit()
        polkit.answer = (False, False)
        async with (
            serving(private_bus.address, engine),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            await client.call("ListCatalog", "as", [])
            assert polkit.asked.empty()
            for call, action in (
                (("Scan",), "load"),
                (("Annotate", "sa{sv}", "tiny", {}), "manage"),
                (("Forget", "s", "tiny"), "manage"),
            ):
                assert (await client.refused(*call)).name.endswith("AccessDenied")
                question = await asyncio.wait_for(polkit.asked.get(), 50)
                assert question.body[1] == f"{NAME}.{action}"
            assert engine.library.calls == [("entries", None, True)]

    run(scenario())


def test_other_models_are_told_of(run: Any, private_bus: PrivateBus, library: str) -> None:
    """One signal with all names."""

    async def scenario() -> None:
        engine = CatalogEngine()
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            client.signals() as heard,
        ):
            engine.tell(CatalogueChanged(("a", "b"), (), ("c",)))
            assert await heard.next("CatalogChanged") == ("CatalogChanged", (["a", "b"], [], ["c"]))

    run(scenario())
