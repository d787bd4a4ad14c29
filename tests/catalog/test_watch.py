"""The kernel tells when something changes below the models' folders; of what changes no model nothing is told."""

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from catalog import trees
from gpud.catalog import inotify, mounts, watch
from gpud.catalog.finder import ModelFinder
from gpud.catalog.inotify import Event
from gpud.core.catalogue import Finding, Roots

TOP = Path(__file__).resolve().parent.parent.parent

BOUND_S = 50.0
"""How long a call that comes may take at most; it takes a quarter of a second."""


class Told:
    """A finder that watches, and how often it has called."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self.finder = ModelFinder(trees.later)
        self.calls = 0
        self._called = asyncio.Event()
        self.unwatched = self.finder.watch(roots, self._changed)

    def _changed(self) -> None:
        self.calls += 1
        self._called.set()

    async def scan(self) -> Finding:
        return await asyncio.to_thread(self.finder.scan, self.roots, {})

    async def called(self) -> None:
        """Wait for the next call."""
        async with asyncio.timeout(BOUND_S):
            await self._called.wait()
        self._called.clear()


def watching(roots: Roots, work: Callable[[Told], Awaitable[None]]) -> None:
    """Run the work with a finder that has looked once and watches."""

    async def run() -> None:
        told = Told(roots)
        try:
            await told.scan()
            await work(told)
        finally:
            told.finder.close()

    asyncio.run(run())


def below(*folders: Path) -> Roots:
    return Roots(folders=tuple(map(str, folders)))


def test_a_new_file_is_told_once(tmp_path: Path) -> None:
    """However many steps it takes to copy it, and the next look finds it."""
    source = trees.gguf(tmp_path / "source" / "m.gguf")
    models = tmp_path / "models"
    models.mkdir()

    async def work(told: Told) -> None:
        assert told.unwatched == ()
        # The loop hears of nothing until it is done.
        subprocess.run(["cp", str(source), str(models / "m.gguf")], check=True)
        await told.called()
        assert told.calls == 1
        assert trees.names(await told.scan()) == ["m"]

    watching(below(models), work)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "m.gguf").unlink(),
        lambda folder: (folder / "m.gguf").rename(folder / "n.gguf"),
        lambda folder: (folder / "m.gguf").rename(folder.parent / "n.gguf"),
        lambda folder: (folder / "m.gguf").chmod(0o600),
        lambda folder: (folder / "n.gguf").symlink_to("m.gguf"),
        lambda folder: os.link(folder / "m.gguf", folder / "n.gguf"),
        lambda folder: (folder / "elsewhere").symlink_to(folder.parent),
        lambda folder: (folder / "old.1").symlink_to(folder.parent),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "m.gguf.aria2").unlink(),
        lambda folder: shutil.rmtree(folder / "sub"),
        lambda folder: (folder / "sub").rename(folder / "sub2"),
        lambda folder: trees.gguf(folder / "sub" / "deep.gguf"),
        lambda folder: trees.gguf(folder / "new" / "newer" / "newest.gguf"),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_what_changes_models_is_told(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Removed, renamed, linked, another mode, in folders that are new as well."""
    folder = tmp_path / "models"
    trees.gguf(folder / "m.gguf")
    (folder / "m.gguf.aria2").touch()
    (folder / "sub").mkdir()

    async def work(told: Told) -> None:
        change(folder)
        await told.called()

    watching(below(folder), work)


def test_what_changes_no_model_is_not_told(tmp_path: Path) -> None:
    """A file that is read, a time of access, notes, hidden things, a download that goes on."""
    path = trees.gguf(tmp_path / "m.gguf")
    part = tmp_path / "n.gguf.part"
    part.touch()
    (tmp_path / "cache").mkdir()

    async def work(told: Told) -> None:
        with path.open("rb") as file:
            file.read()
        with part.open("ab") as file:
            file.write(b"more")
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / ".hidden.gguf").write_text("x")
        (tmp_path / ".hidden").mkdir()
        (tmp_path / "cache" / "c.gguf").write_text("x")
        (tmp_path / "tmp").mkdir()
        # What is told comes after all of this, and is the only thing.
        part.rename(tmp_path / "n.gguf")
        await told.called()
        assert told.calls == 1

    watching(below(tmp_path), work)


def test_a_new_folder_is_watched_from_the_next_look_on(tmp_path: Path) -> None:
    """Folder by folder, as they come; what comes between a look's start and its end is told."""
    folder = tmp_path
    (folder / "first").mkdir()

    async def work(told: Told) -> None:
        here = folder / "first"
        for name in ("a", "b", "c"):
            here = here / name
            here.mkdir()
            await told.called()
            await told.scan()
        trees.gguf(here / "m.gguf")
        await told.called()
        assert trees.names(await told.scan()) == ["m"]

    watching(below(folder), work)


def test_a_root_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """However many folders above it are missing, and when it goes and comes back."""
    root = tmp_path / "a" / "b" / "models"

    async def work(told: Told) -> None:
        for _ in range(2):
            trees.gguf(root / "m.gguf")
            while not (await told.scan()).models:
                await told.called()
            shutil.rmtree(tmp_path / "a")
            while (await told.scan()).models:
                await told.called()

    watching(below(root), work)


def test_changes_in_stores_are_told(tmp_path: Path) -> None:
    """A new revision and a new repository in a cache; a new tag in Ollama's store."""
    hub, store = tmp_path / "hub", tmp_path / "ollama"
    first, second = (trees.gguf(tmp_path / "made" / f"{name}.gguf") for name in "ab")
    trees.hub_file(hub, "org/one", "0" * 40, "m.gguf", first)
    trees.ollama_manifest(
        store, "registry.ollama.ai/library/m/1", {"model": trees.ollama_blob(store, first.read_bytes())}
    )

    async def work(told: Told) -> None:
        assert len((await told.scan()).models) == 1
        trees.hub_file(hub, "org/one", "1" * 40, "m.gguf", second)
        await told.called()
        await told.scan()
        trees.hub_main(hub, "org/one", "0" * 40)
        await told.called()
        await told.scan()
        trees.hub_file(hub, "org/two", "0" * 40, "m.gguf", second)
        await told.called()
        await told.scan()
        digest = trees.ollama_blob(store, trees.gguf(tmp_path / "made" / "c.gguf").read_bytes())
        trees.ollama_manifest(store, "registry.ollama.ai/library/m/v1.5", {"model": digest})
        await told.called()
        assert "m:v1.5" in [place.name for found in (await told.scan()).models for place in found.places]

    watching(Roots(huggingface=(str(hub),), ollama=(str(store),)), work)


def test_a_folder_that_is_copied_is_told_together(tmp_path: Path) -> None:
    """A hundred files are not a hundred calls."""
    source = tmp_path / "source"
    for number in range(100):
        trees.gguf(source / f"m{number}.gguf", f"m{number}")
    models = tmp_path / "models"
    models.mkdir()

    async def work(told: Told) -> None:
        shutil.copytree(source, models, dirs_exist_ok=True)  # The loop hears of nothing until it is done.
        await told.called()
        assert told.calls == 1
        assert len((await told.scan()).models) == 100

    watching(below(models), work)


def test_events_that_were_lost_are_a_change(tmp_path: Path) -> None:
    """The kernel keeps so many, and says when there were more."""
    (tmp_path / "sub").mkdir()
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def work(told: Told) -> None:
        for number in range(most // 2 + 1000):  # Each is created and removed; of none would be told.
            path = tmp_path / f"{number}.txt"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            path.unlink()
        await told.called()

    watching(below(tmp_path), work)


def test_other_roots_are_watched_in_place_of_the_first(tmp_path: Path) -> None:
    """After a reload. The same ones again are watched as they are."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()

    async def run() -> None:
        told = Told(below(one))
        called = asyncio.Event()
        try:
            await told.scan()
            assert told.finder.watch(below(two), called.set) == ()
            trees.gguf(one / "a.gguf")
            trees.gguf(two / "b.gguf")
            async with asyncio.timeout(BOUND_S):
                await called.wait()
            assert told.calls == 0
        finally:
            told.finder.close()

    asyncio.run(run())


def timers() -> list[float]:
    """In how many seconds the loop is to wake by itself."""
    loop = asyncio.get_running_loop()
    handles = loop._scheduled  # type: ignore[attr-defined]
    return [handle.when() - loop.time() for handle in handles if not handle.cancelled()]


def test_nothing_is_told_after_the_end(tmp_path: Path) -> None:
    """Also not what was gathered by then; a look that is still under way ends well."""

    async def run() -> None:
        told = Told(below(tmp_path))
        await told.scan()
        trees.gguf(tmp_path / "a.gguf")
        while not timers():
            await asyncio.sleep(0)
        scan = asyncio.create_task(told.scan())
        told.finder.close()
        told.finder.close()
        assert trees.names(await scan) == ["a"]
        assert timers() == [] and told.calls == 0

    asyncio.run(run())


def test_a_file_that_its_writer_left_incomplete_is_looked_at_again(tmp_path: Path) -> None:
    """Nobody tells that a writer which is gone will not go on: a look is asked for a while later."""
    path = trees.gguf(tmp_path / "m.gguf")
    os.truncate(path, path.stat().st_size - 1)

    async def run() -> None:
        finder = ModelFinder()
        called = asyncio.Event()
        finder.watch(below(tmp_path), called.set)
        try:
            finding = await asyncio.to_thread(finder.scan, below(tmp_path), {})
            assert finding.models == ()
            await asyncio.sleep(0)
            (when,) = timers()
            assert watch.AGAIN_FIRST_S / 2 < when <= watch.AGAIN_FIRST_S
        finally:
            finder.close()

    asyncio.run(run())


def test_at_rest_there_is_no_timer(tmp_path: Path) -> None:
    """Nothing wakes the daemon when nothing happens."""
    trees.gguf(tmp_path / "m.gguf")

    async def work(told: Told) -> None:
        assert timers() == []

    watching(below(tmp_path), work)


def test_a_folder_that_is_gone_is_watched_no_more(tmp_path: Path) -> None:
    """Folders that come and go leave nothing behind."""
    (tmp_path / "stays").mkdir()

    async def work(told: Told) -> None:
        for _ in range(3):
            (tmp_path / "goes" / "deep").mkdir(parents=True)
            await told.called()
            await told.scan()
            assert watches() == 4
            shutil.rmtree(tmp_path / "goes")
            await told.called()
            await told.scan()
        assert watches() == 2

    watching(below(tmp_path), work)


def watches() -> int:
    """How many folders this process watches, by the kernel's word."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                return Path(f"/proc/self/fdinfo/{name}").read_text().count("inotify wd:")
        except OSError:
            continue
    return 0


LIMITED = """
import asyncio, json, sys
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Roots

async def main():
    finder, roots = ModelFinder(), Roots(folders=tuple(sys.argv[1:]))
    at_first = finder.watch(roots, lambda: None)
    finding = await asyncio.to_thread(finder.scan, roots, {})
    print(json.dumps({"at_first": at_first, "then": finder.watch(roots, lambda: None), "models": len(finding.models),
        "troubles": [(trouble.path, trouble.text) for trouble in finding.troubles]}))
    finder.close()

asyncio.run(main())
"""


def limited(limit: str, *folders: Path) -> dict[str, Any]:
    """What a finder says to whom the kernel gives no more than ``limit``, which counts for a user of its own."""
    line = f'echo {limit.split("=")[1]} > /proc/sys/user/{limit.split("=")[0]} && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", line, "sh", sys.executable, "-c", LIMITED]
    done = subprocess.run([*command, *map(str, folders)], cwd=TOP, capture_output=True, text=True)
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    if "Read-only file system" in done.stderr:
        pytest.skip(f"a container whose limits cannot be changed: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def test_without_an_instance_all_roots_have_to_be_looked_at(tmp_path: Path) -> None:
    """The kernel gives each user so many; models are found all the same."""
    trees.gguf(tmp_path / "m.gguf")
    said = limited("max_inotify_instances=0", tmp_path)
    assert said["at_first"] == said["then"] == [str(tmp_path)] and said["models"] == 1


def test_when_there_are_no_more_watches_the_root_has_to_be_looked_at(tmp_path: Path) -> None:
    """Known after the first look; it is told with the limit and what to do. Other roots are watched."""
    small, large = tmp_path / "small", tmp_path / "large"
    trees.gguf(small / "m.gguf", "small")
    for number in range(10):
        trees.gguf(large / f"{number}" / "m.gguf", f"{number}")
    said = limited("max_inotify_watches=5", small, large)
    assert said["at_first"] == [] and said["then"] == [str(large)] and said["models"] == 11
    ((path, text),) = said["troubles"]
    assert path == str(large) and "fs.inotify.max_user_watches" in text and "folders" in text


def test_a_file_system_of_another_machine_is_not_watched() -> None:
    """Its kind is asked for, not its name."""
    kernel = inotify.Inotify()
    try:
        assert not kernel.remote("/")
        assert not kernel.remote("/proc")
        assert not kernel.remote("/nowhere/at/all")
    finally:
        kernel.close()
    assert {0x6969, 0xFF534D42, 0xFE534D42, 0x65735546, 0x01021997, 0x00C36400} <= inotify.REMOTE


MOUNTED = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/nas rw shared:2 master:1 - nfs4 server:/models rw
31 30 8:1 / /mnt/nas/disk rw - xfs /dev/sda1 rw
32 22 0:41 / /mnt/with\\040space rw - fuse.sshfs host: rw
33 22 8:2 / /mnt/windows rw - fuseblk /dev/sdb1 rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "elsewhere"),
    [
        ("/", False),
        ("/var/lib/ml-models", False),
        ("/mnt/nas", True),
        ("/mnt/nas/models", True),
        ("/mnt/nasty", False),
        ("/mnt/nas/disk/models", False),
        ("/mnt/with space/x", True),
        ("/mnt/windows", False),
    ],
)
def test_what_is_mounted_from_elsewhere_is_known_without_asking_it(path: str, elsewhere: bool) -> None:
    """The nearest mount decides. A server that does not answer would hold everybody up."""
    assert mounts.is_remote(path, mounts.parsed(MOUNTED)) is elsewhere


MOUNTING = """
import asyncio, json, subprocess, sys
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Roots

async def main():
    finder, roots, told = ModelFinder(), Roots(folders=(sys.argv[1],)), asyncio.Event()
    finder.watch(roots, told.set)
    found = [len((await asyncio.to_thread(finder.scan, roots, {})).models)]
    for command in (["mount", "-t", "tmpfs", "none", "/mnt"], ["mount", "--bind", sys.argv[2], sys.argv[1]],
            ["umount", sys.argv[1]]):
        await asyncio.to_thread(subprocess.run, command, check=True)
        if "/mnt" not in command:  # That one is about no root, and is not told.
            await asyncio.wait_for(told.wait(), 20)
            told.clear()
        found.append(len((await asyncio.to_thread(finder.scan, roots, {})).models))
    finder.close()
    print(json.dumps([found, told.is_set()]))

asyncio.run(main())
"""


def test_a_disk_that_is_mounted_is_told(tmp_path: Path) -> None:
    """And one that is unmounted; others are nobody's business. In a namespace of its own."""
    (tmp_path / "models").mkdir()
    trees.gguf(tmp_path / "disk" / "m.gguf")
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNTING]
    done = subprocess.run(
        [*command, str(tmp_path / "models"), str(tmp_path / "disk")], cwd=TOP, capture_output=True, text=True
    )
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0, 0, 1, 0], False]


def test_a_file_in_place_of_a_root_is_not_looked_at_again_and_again(tmp_path: Path) -> None:
    """It is no folder, and stays none until something happens."""
    path = trees.gguf(tmp_path / "models")

    async def work(told: Told) -> None:
        await told.scan()
        await asyncio.sleep(0)
        assert timers() == [] and told.calls == 0
        path.unlink()
        trees.gguf(path / "m.gguf")
        while not (await told.scan()).models:
            await told.called()

    watching(below(path), work)


@pytest.mark.parametrize(
    ("name", "mask", "matters"),
    [
        ("a.gguf", inotify.CREATE, True),
        ("a.GGUF", inotify.CLOSE_WRITE, True),
        ("a.gguf", inotify.ATTRIB, True),
        ("a.safetensors", inotify.MOVED_FROM, True),
        (".a.gguf", inotify.CLOSE_WRITE, False),
        ("config.json", inotify.MOVED_TO, True),
        ("other.json", inotify.MOVED_TO, False),
        ("a.gguf.part", inotify.CREATE, False),
        ("a.gguf.part", inotify.DELETE, True),
        ("main", inotify.CLOSE_WRITE, True),
        ("main", inotify.ATTRIB, False),
        ("folder", inotify.CREATE | inotify.IS_FOLDER, True),
        ("folder.d", inotify.DELETE | inotify.IS_FOLDER, True),
        ("cache", inotify.CREATE | inotify.IS_FOLDER, False),
        (".git", inotify.CREATE | inotify.IS_FOLDER, False),
        ("", inotify.ATTRIB | inotify.IS_FOLDER, True),
    ],
)
def test_which_events_are_about_models(tmp_path: Path, name: str, mask: int, matters: bool) -> None:
    """By name, by what happened, and by whether it is a folder."""
    assert watch.is_about_models(str(tmp_path), name, mask) is matters


def test_events_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    """With names of any length and of any bytes."""
    kernel = inotify.Inotify()
    try:
        number = kernel.add(str(tmp_path), inotify.CREATE)
        names = [b"a", b"x" * 255, b"line\nbreak", b"\xff\xfe"]
        for name in names:
            os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
        assert list(kernel.read()) == [Event(number, inotify.CREATE, os.fsdecode(name)) for name in names]
        assert list(kernel.read()) == []
    finally:
        kernel.close()


def test_without_descriptors_nothing_is_watched_and_nothing_is_left_open(tmp_path: Path) -> None:
    """Whichever of those that it takes is the one too many."""

    async def run() -> None:
        finder = ModelFinder()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        for more in range(3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
            try:
                unwatched = finder.watch(below(tmp_path), lambda: None)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert unwatched == (str(tmp_path),), more
        finder.close()

    asyncio.run(run())


# Which files it is about ---------------------------------------------------------------------------------------------


def test_a_file_that_was_copied_is_named(tmp_path: Path) -> None:
    """So that it can be looked at alone; what was named is not named again."""

    async def work(told: Told) -> None:
        source = trees.gguf(tmp_path.parent / f"{tmp_path.name}-source" / "a.gguf")
        subprocess.run(["cp", str(source), str(tmp_path / "b.gguf")], check=True)
        await told.called()
        assert told.finder.noticed() == {str(tmp_path / "b.gguf")}
        assert told.finder.noticed() == frozenset()

    watching(Roots(folders=(str(tmp_path),)), work)


def test_a_download_that_gets_its_name_is_named_by_that(tmp_path: Path) -> None:
    """The name that it had meanwhile is nobody's."""
    (tmp_path / "a.gguf.part").write_bytes(b"GGUF")

    async def work(told: Told) -> None:
        (tmp_path / "a.gguf.part").rename(tmp_path / "a.gguf")
        await told.called()
        assert told.finder.noticed() == {str(tmp_path / "a.gguf")}

    watching(Roots(folders=(str(tmp_path),)), work)


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "folder").mkdir(),
        lambda top: (top / "config.json").write_text("{}"),
        lambda top: trees.safetensors(top),
        lambda top: [trees.gguf(top / f"m-{number}.gguf") for number in range(watch.FILES_MOST + 1)],
    ],
    ids=["a folder", "a description", "SafeTensors", "very many files"],
)
def test_of_everything_else_no_file_is_named(change: Callable[[Path], Any], tmp_path: Path) -> None:
    """Then everything has to be looked at, which forgets what was to be looked at before."""

    async def work(told: Told) -> None:
        change(tmp_path)
        await told.called()
        assert told.finder.noticed() is None
        assert told.finder.noticed() is None, "nobody has looked yet"
        await told.scan()
        assert told.finder.noticed() == frozenset()

    watching(Roots(folders=(str(tmp_path),)), work)


def test_before_the_first_look_no_file_is_named(tmp_path: Path) -> None:
    """Nobody knows what was there."""

    async def run() -> None:
        told = Told(Roots(folders=(str(tmp_path),)))
        try:
            assert told.finder.noticed() is None
        finally:
            told.finder.close()

    asyncio.run(run())
