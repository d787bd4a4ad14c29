"""A look at all models, by the real finder and the real registry, in a copy of the process as the daemon does it."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from catalog import trees

from gpud.aside import Aside
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Entry, Roots
from gpud.core.events import Outcome
from gpud.core.facts import EngineSettings, Model
from gpud.core.ports import Aside as AsidePort
from gpud.core.ports import Line
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf
from gpud.store import FileStore

TOP = Path(__file__).resolve().parent


def makes() -> Callable[[Entry], Model | str]:
    return lambda entry: Model(entry.name, "fake", settings=EngineSettings(file=entry.found.path))


class House:
    """A library, what it keeps, and what it has told."""

    def __init__(self, top: Path, aside: AsidePort | None) -> None:
        self.folder = top / "models"
        self.problems: list[str] = []
        self.store = FileStore(runtime_dir=top / "run", state_dir=top / "state", on_problem=self.problems.append)
        self.library = Library(ModelFinder(trees.later), self.store.registry, aside)
        self.told: list[Outcome] = []
        self.put = 0
        self.library.serve(self._put, self.told.extend, self._size)
        self.shelf = Shelf({}, Roots(folders=(str(self.folder),)), makes)

    async def _put(self, _models: Any, _others: frozenset[str]) -> None:
        self.put += 1

    async def _size(self, model: Model) -> int | None:
        return len(model.name) << 30

    async def close(self) -> None:
        await self.library.close()
        self.store.close()


def change(folder: Path, step: int) -> None:
    match step:
        case 0:
            for number in range(4):
                trees.gguf(folder / f"p{number % 2}" / f"model-{number}.gguf", rows=8 + number)
        case 1:
            trees.gguf(folder / "p3" / "more.gguf", rows=40)
            (folder / "p0" / "model-0.gguf").unlink()
        case 2:
            trees.gguf(folder / "p1" / "model-1.gguf", rows=77)
            (folder / "p1" / "model-3.gguf").rename(folder / "p1" / "renamed.gguf")
        case 3:
            (folder / "p3" / "broken.gguf").write_bytes(b"GGUF" + bytes(3))


def test_a_look_in_a_copy_comes_to_what_a_look_here_comes_to(tmp_path: Path, run: Any) -> None:
    """Through files that come, go, change and cannot be read; also what is told, kept and calculated."""

    async def scenario() -> None:
        here, there = House(tmp_path / "here", None), House(tmp_path / "there", Aside())
        for house in (here, there):
            await house.library.configure(house.shelf)
        for step in range(5):
            said = []
            for house in (here, there):
                change(house.folder, step)
                scanned = await house.library.scan()
                await house.library.sized()
                entries = await house.library.entries(everything=True)
                said.append(
                    (
                        (scanned.models, scanned.new, scanned.gone, scanned.changed, scanned.files, scanned.read),
                        [trouble.text for trouble in scanned.troubles],
                        [(e.name, e.id, e.found.size_bytes, e.estimate_bytes, e.present) for e in entries],
                        {name: house.library.need_of(name) for name in house.library.models},
                        [
                            model.settings.file.removeprefix(str(house.folder))
                            for model in house.library.models.values()
                        ],
                        house.put,
                        len(house.told),
                    )
                )
            assert said[0] == said[1], step
        assert here.problems == there.problems == []
        for house in (here, there):
            await house.close()

    run(scenario())


def test_a_look_that_comes_to_nothing_new_leaves_what_is_held(tmp_path: Path, run: Any) -> None:
    """The very same object: nothing of it was made a second time."""

    async def scenario() -> None:
        house = House(tmp_path, Aside())
        change(house.folder, 0)
        await house.library.configure(house.shelf)
        await house.library.scan()
        await house.library.sized()
        models, needs = house.library.models, [house.library.need_of(name) for name in house.library.models]
        scanned = await house.library.scan()
        assert (scanned.models, scanned.new, scanned.changed, scanned.read) == (4, (), (), 0)
        assert house.library.models is models
        assert [house.library.need_of(name) for name in models] == needs and None not in needs
        await house.close()

    run(scenario())


class NoCopies:
    """As where a process can have no other, or that ends before it is done."""

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def __call__(
        self, work: Callable[[Line], None], serve: Callable[[Line], Any], stop: Any, keep: Collection[int] = ()
    ) -> Any:
        raise self._problem


@pytest.mark.parametrize(
    "problem", [BlockingIOError(11, "Resource temporarily unavailable"), EOFError("it was killed")]
)
def test_where_there_can_be_no_copy_it_is_looked_here(
    tmp_path: Path, run: Any, caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    """It is said why, and nothing else is different."""

    async def scenario() -> None:
        house = House(tmp_path, NoCopies(problem))
        change(house.folder, 0)
        await house.library.configure(house.shelf)
        with caplog.at_level(logging.WARNING):
            assert (await house.library.scan()).models == 4
        assert [record.getMessage() for record in caplog.records] == [
            f"cannot look for models in a process of its own: {problem}; it is done in this one"
        ]
        await house.close()

    run(scenario())


def test_a_look_that_is_given_up_keeps_nothing_back(tmp_path: Path, run: Any) -> None:
    """The library ends while a copy looks: that is killed, and the next gpud finds everything."""

    async def scenario() -> None:
        house = House(tmp_path, Aside())
        change(house.folder, 0)
        await house.library.configure(house.shelf)
        look = asyncio.create_task(house.library.scan())
        await asyncio.sleep(0)
        await house.close()
        await asyncio.gather(look, return_exceptions=True)
        again = House(tmp_path, Aside())
        await again.library.configure(again.shelf)
        assert (await again.library.scan()).models == 4
        await again.close()

    run(scenario())


# What stays of very many ---------------------------------------------------------------------------------------------

COUNT = 1500

BLOCKS_MOST = 4.5
"""Python's small objects for each model: its name, its file, the pair that it is, and what is known of it."""

DIRTY_MOST_KIB = 2.0
"""For each model, after three looks. It is 1.2 where copies of the process look, and 4 where it looks itself."""

HOLD = """
import asyncio, gc, json, os, re, struct, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from catalog import trees
from gpud.allocator import give_memory_back
from gpud.aside import Aside
from test_looks import House

def dirty_kib():
    return int(re.search(r"Private_Dirty: +(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

async def run(top, count, aside):
    house = House(top, aside)
    head = trees.gguf(house.folder / "model-0.gguf").read_bytes()
    await house.library.configure(house.shelf)
    await house.library.scan()
    await house.library.sized()
    gc.collect()
    blocks, dirty = sys.getallocatedblocks(), dirty_kib()
    for number in range(1, count):
        path = house.folder / f"publisher-{number // 50}" / f"model-{number}.gguf"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(head)
        os.truncate(path, len(head) + 32 * number)
    for _ in range(3):
        assert (await house.library.scan()).models == count
        await house.library.sized()
    house.told.clear()
    gc.collect()
    print(json.dumps([sys.getallocatedblocks() - blocks, dirty_kib() - dirty]))
    await house.close()

give_memory_back()
asyncio.run(run(Path(sys.argv[3]), int(sys.argv[4]), Aside() if sys.argv[5] == "aside" else None))
"""


def held(top: Path, aside: str) -> tuple[float, float]:
    """Blocks and KiB for each model."""
    argv = [sys.executable, "-c", HOLD, str(TOP.parent), str(TOP), str(top), str(COUNT), aside]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    blocks, dirty_kib = json.loads(done.stdout)
    return blocks / COUNT, dirty_kib / COUNT


def test_hardly_anything_stays_of_very_many_models(tmp_path: Path) -> None:
    """Four objects each, and of the memory that looks take next to nothing."""
    blocks, dirty_kib = held(tmp_path, "aside")
    assert blocks < BLOCKS_MOST
    assert dirty_kib < DIRTY_MOST_KIB


# What a copy must not wait for ---------------------------------------------------------------------------------------

IMPORTS = """
import asyncio, json, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from catalog import trees
from gpud import config, daemon, shelves
from gpud.aside import Aside
from gpud.engines import Engines, KnownEngines
from test_looks import House

class Heard(Aside):
    def __call__(self, work, serve, stop, keep=()):
        heard = os.memfd_create("heard")
        def heard_work(line):
            sys.addaudithook(lambda event, about: event == "import" and os.write(heard, f"{about[0]}\\n".encode()))
            work(line)
        try:
            return super().__call__(heard_work, serve, stop, (*keep, heard))
        finally:
            os.lseek(heard, 0, os.SEEK_SET)
            imported.append(os.read(heard, 10_000).decode().split())
            os.close(heard)

async def run(top):
    house = House(top, Heard())
    models, hub, ollama = house.folder, top / "hub", top / "ollama"
    whole = trees.gguf(models / "whole.gguf")
    trees.gguf(models / "seeing" / "seeing.gguf")
    trees.projector(models / "seeing" / "mmproj-seeing.gguf")
    trees.gguf(models / "embeds.gguf", architecture="bert", bert__pooling_type=1)
    trees.split(models, "split", 2)
    trees.safetensors(models / "safe", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    (models / "broken.gguf").write_bytes(b"GGUF" + bytes(3))
    trees.hub_file(hub, "publisher/repository", "1", "whole.gguf", whole)
    trees.hub_main(hub, "publisher/repository", "1")
    layers = {"model": whole.read_bytes(), "params": b'{"stop": ["x"]}', "template": b"{{ .Prompt }}"}
    trees.ollama_manifest(
        ollama,
        "registry.ollama.ai/library/tiny/latest",
        {kind: trees.ollama_blob(ollama, content) for kind, content in layers.items()},
    )
    file = top / "gpud.yaml"
    file.write_text(f"registry: {{paths: [{models}], huggingface: [{hub}], ollama: [{ollama}]}}")
    wanted = config.load(file, known_engines=KnownEngines())
    here = Engines(wanted, None, service=False).here
    await house.library.configure(shelves.shelf(wanted, here, {"HOME": str(top)}, user=True))
    scanned = await house.library.scan()
    await house.close()
    return scanned.models, len(scanned.troubles)

imported = []
models, troubles = asyncio.run(run(Path(sys.argv[3])))
print(json.dumps([models, troubles, imported]))
"""


def test_a_look_in_a_copy_imports_nothing(tmp_path: Path) -> None:
    """Whatever there is to find: a thread may be at the same import as the copy begins, and never ends it there."""
    argv = [sys.executable, "-c", IMPORTS, str(TOP.parent), str(TOP), str(tmp_path)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    models, troubles, imported = json.loads(done.stdout)
    assert (models, troubles) == (5, 1)
    assert imported == [[]]
