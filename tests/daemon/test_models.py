"""Models that are only put on the disk: the real finder, registry and engines, from a file's coming to its going."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from dbus.private_bus import session_bus

from .doors import HELLO, Doors, open_doors
from .harness import BOUND_S, TOP, Daemon, Place, engine, place_at, plain, settle, wait_gone
from .service_manager import Manager

WRITER = TOP / "tests" / "tiny_model.py"


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models, different ones."""
    folder = tmp_path_factory.mktemp("tiny")
    paths = [folder / f"{seed}.gguf" for seed in range(4)]
    for seed, path in enumerate(paths):
        command = [sys.executable, str(WRITER), str(path), "--seed", str(seed), "--name", f"tiny {seed}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return paths


class Shop:
    """A place with folders for models, and its daemon."""

    def __init__(self, place: Place, files: list[Path], folders: tuple[str, ...] = ("models",)) -> None:
        self.place = place
        self.files = files
        self.folders = [place.root / name for name in folders]
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
        self.doors: Doors = open_doors(place)

    @property
    def folder(self) -> Path:
        return self.folders[0]

    def configure(self, models: dict[str, object] | None = None, **registry: object) -> None:
        paths = {"paths": [str(folder) for folder in self.folders]}
        self.place.configure({"spare": engine(), **(models or {})}, registry={**paths, **registry})

    def put(self, name: str, number: int = 0, folder: Path | None = None) -> Path:
        """As ``cp`` does it."""
        return Path(shutil.copy(self.files[number], (folder or self.folder) / f"{name}.gguf"))

    def gpudctl(self, *words: str, status: int = 0) -> str:
        return self.place.type("gpudctl", *words, status=status)


@pytest.fixture
def shop(place: Place, tiny_files: list[Path]) -> Shop:
    return Shop(place, tiny_files)


def names(daemon: Daemon) -> set[str]:
    return {plain(record)["Id"] for record in daemon.call("ListModels")}


def known(daemon: Daemon, name: str) -> dict[str, Any]:
    """What ListCatalog has of one model."""
    (record,) = daemon.call("ListCatalog", "as", [name])
    return plain(record)


def changed(daemon: Daemon, which: int, name: str, *, since: int = 0) -> None:
    """Until a signal says that a model is new (0), gone (1) or another (2)."""
    daemon.client.wait_signal(lambda s: s.member == "CatalogChanged" and name in s.body[which], since=since)


NEW, GONE, CHANGED = range(3)


def test_a_file_that_is_copied_answers_by_its_name(shop: Shop) -> None:
    """Nothing is configured and nothing restarted: it is announced, listed with what its head says, and serves."""
    shop.configure()
    daemon = shop.place.start()
    shop.put("Qwen-tiny")
    changed(daemon, NEW, "Qwen-tiny")
    record, status = known(daemon, "Qwen-tiny"), daemon.model("Qwen-tiny")
    assert (record["Path"], record["Architecture"]) == (str(shop.folder / "Qwen-tiny.gguf"), "llama")
    assert record["SizeBytes"] == shop.files[0].stat().st_size and record["TrainedContext"] == 32768
    assert status["ContextSize"] == 16384 and not record["Configured"]
    assert shop.doors.front.chat("Qwen-tiny", max_tokens=4).status == 200
    assert shop.doors.front.chat("Qwen-tiny.gguf", max_tokens=4).status == 200
    assert shop.doors.front.chat("qwen-tiny", max_tokens=4).status == 404
    daemon.aftermath()


def test_a_renamed_file_is_the_same_model(shop: Shop) -> None:
    """It keeps its name, its number and its tags; it is loaded from where it is now."""
    shop.configure()
    path = shop.put("first")
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.call("Annotate", "sa{sv}", "first", {"tags": ("as", ["kept"])})
    before = known(daemon, "first")
    since = len(daemon.client.signals)
    path.rename(shop.folder / "second.gguf")
    changed(daemon, CHANGED, "first", since=since)
    after = known(daemon, "first")
    assert after["Path"] == str(shop.folder / "second.gguf")
    assert (after["Number"], after["Tags"]) == (before["Number"], ["kept"])
    assert names(daemon) == {"spare", "first"}
    assert shop.doors.front.chat("first", max_tokens=4).status == 200
    assert shop.doors.front.chat("second", max_tokens=4).status == 200
    daemon.aftermath()


def stream(shop: Shop, model: str) -> Any:
    """An answer that has begun, and is long."""
    opened = shop.doors.front.open(
        "/v1/chat/completions", {"model": model, "messages": HELLO, "stream": True, "max_tokens": 1500}
    )
    assert opened.status == 200
    while b'"content":"' not in opened.line():
        pass
    return opened


def test_a_removed_file_is_unloaded_when_its_answers_are_out(shop: Shop) -> None:
    """Who is being answered hears the end; whoever asks then is told that there is no such model."""
    shop.configure()
    path = shop.put("leaving")
    daemon = shop.place.start()
    daemon.call("Scan")
    with stream(shop, "leaving") as answer:
        (pid,) = (record["child"]["pid"] for record in shop.place.records().values())
        path.unlink()
        changed(daemon, GONE, "leaving")
        assert shop.doors.front.chat("leaving").status == 404
        assert answer.rest().rstrip().endswith(b"data: [DONE]")
    wait_gone(pid)
    settle(lambda: names(daemon) == {"spare"}, "it is not listed any more")
    daemon.aftermath()


def test_a_file_that_is_replaced_is_loaded_anew(shop: Shop) -> None:
    """The old one answers to its end, from the old file; the next question goes to the new one."""
    shop.configure()
    path = shop.put("same")
    daemon = shop.place.start()
    daemon.call("Scan")
    with stream(shop, "same") as answer:
        pid = shop.place.records()["same"]["child"]["pid"]
        fresh = shop.place.root / "fresh.gguf"
        shutil.copy(shop.files[1], fresh)
        fresh.replace(path)
        changed(daemon, CHANGED, "same")
        assert answer.rest().rstrip().endswith(b"data: [DONE]")
    wait_gone(pid)
    assert shop.doors.front.chat("same", max_tokens=4).status == 200
    assert shop.place.records()["same"]["child"]["pid"] != pid
    daemon.aftermath()


def test_a_pattern_says_how_found_models_are_loaded(shop: Shop) -> None:
    """What fits it has its keys; what is written for one name goes before; the rest is as found."""
    shop.configure({"qwen-*": {"context": 512, "idle_timeout": 0}, "qwen-b": {"aliases": ["best"], "context": 1024}})
    for number, name in enumerate(("qwen-a", "qwen-b", "phi")):
        shop.put(name, number)
    daemon = shop.place.start()
    daemon.call("Scan")
    assert {name: daemon.model(name)["ContextSize"] for name in ("qwen-a", "qwen-b", "phi")} == {
        "qwen-a": 512,
        "qwen-b": 1024,
        "phi": 16384,
    }
    assert names(daemon) == {"spare", "qwen-a", "qwen-b", "phi"}
    assert shop.doors.front.chat("best", max_tokens=4).status == 200
    assert daemon.model("qwen-b")["UnloadAtUSec"] == 0
    daemon.aftermath()


def test_a_reload_brings_a_folder_and_takes_it_away(place: Place, tiny_files: list[Path]) -> None:
    """What is loaded and did not change is not touched by either."""
    shop = Shop(place, tiny_files, ("models", "more"))
    first, second = shop.folders
    shop.put("stays", 0, first)
    shop.put("comes", 1, second)
    shop.folders = [first]
    shop.configure()
    daemon = place.start()
    daemon.call("Scan")
    pid = daemon.loaded("stays")["child"]["pid"]
    assert names(daemon) == {"spare", "stays"}
    shop.folders = [first, second]
    shop.configure()
    daemon.reload()
    changed(daemon, NEW, "comes")
    shop.folders = [first]
    shop.configure()
    daemon.reload()
    daemon.call("Scan")
    assert names(daemon) == {"spare", "stays"}
    assert place.records()["stays"]["child"]["pid"] == pid and daemon.state("stays") == "ready"
    daemon.aftermath()


def test_a_found_model_survives_a_killed_daemon(shop: Shop, manager: Manager) -> None:
    """The next one takes its engine over before anything was looked for, and it answers without being loaded again."""
    shop.configure()
    shop.put("kept")

    def start() -> Daemon:
        made = shop.place.start(wait=False)
        manager.wait_ready(BOUND_S)
        made.is_ready()
        return made

    daemon = start()
    daemon.call("Scan")
    pid = daemon.loaded("kept")["child"]["pid"]
    daemon.kill9()
    again = start()
    again.wait_state("kept", "ready")
    assert shop.doors.front.chat("kept", max_tokens=4).status == 200
    assert shop.place.records()["kept"]["child"]["pid"] == pid
    assert again.model("kept")["Pid"] == pid
    again.aftermath()


def test_uses_are_counted_over_restarts(shop: Shop) -> None:
    """Number, name, tags, and how often it was used."""
    shop.configure()
    shop.put("used")
    daemon = shop.place.start()
    daemon.call("Scan")
    for _ in range(3):
        assert shop.doors.front.chat("used", max_tokens=1).status == 200
    before = known(daemon, "used")
    assert before["UsageCount"] == 3 and before["LastUsedUSec"] > 0 and before["LoadUSec"] > 0
    assert daemon.stop() == 0
    again = shop.place.start()
    after = known(again, "used")
    same = ("Number", "UsageCount", "LastUsedUSec", "LoadUSec", "FirstSeenUSec")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert shop.doors.front.chat("used", max_tokens=1).status == 200
    assert known(again, "used")["UsageCount"] == 4
    again.aftermath()


# The database --------------------------------------------------------------------------------------------------------


def database(shop: Shop) -> Path:
    return shop.place.state / "gpud" / "registry.db"


def test_a_damaged_database_is_set_aside(shop: Shop) -> None:
    """It is said; models are found anew, and what is said of them is kept from then on."""
    shop.configure()
    shop.put("found")
    database(shop).parent.mkdir(parents=True)
    database(shop).write_bytes(b"SQLite format 3\0" + b"no database " * 1000)
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.call("Annotate", "sa{sv}", "found", {"notes": ("s", "again")})
    assert any(path.read_bytes().endswith(b"no database ") for path in database(shop).parent.iterdir())
    assert "registry.db" in daemon.log()
    assert daemon.stop() == 0
    again = shop.place.start()
    assert known(again, "found")["Notes"] == "again"
    assert again.load("found").result == "done"
    again.aftermath()


def test_a_newer_database_is_left_as_it_is(shop: Shop) -> None:
    """Nothing is kept, which status says; models are found and loaded as ever."""
    shop.configure()
    shop.put("found")
    database(shop).parent.mkdir(parents=True)
    with sqlite3.connect(database(shop)) as newer:
        newer.execute("CREATE TABLE of_tomorrow (x)")
        newer.execute("PRAGMA user_version = 999")
    newer.close()
    content = database(shop).read_bytes()
    daemon = shop.place.start()
    daemon.call("Scan")
    assert "state-not-kept" in daemon.status()["Degraded"]
    assert "999" in daemon.log()
    assert shop.doors.front.chat("found", max_tokens=1).status == 200
    daemon.aftermath()
    assert database(shop).read_bytes() == content


def test_two_daemons_do_not_share_a_database(shop: Shop) -> None:
    """The second says who is in its way, finds and loads models all the same, and writes nothing."""
    shop.configure()
    shop.put("found")
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.call("Annotate", "sa{sv}", "found", {"tags": ("as", ["first"])})
    with session_bus() as other_bus, place_at(other_bus.address) as other:
        other.environment["XDG_STATE_HOME"] = str(shop.place.state)
        other.configure({"spare": engine()}, registry={"paths": [str(shop.folder)]})
        second = other.start()
        second.call("Scan")
        assert "state-not-kept" in second.status()["Degraded"]
        assert names(second) == {"spare", "found"}
        second.call("Annotate", "sa{sv}", "found", {"tags": ("as", ["second"])})
        assert second.load("found").result == "done"
        second.aftermath()
    daemon.call("Scan")
    assert known(daemon, "found")["Tags"] == ["first"]
    assert "state-not-kept" not in daemon.status()["Degraded"]
    daemon.aftermath()


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_may_go_and_come_back(shop: Shop) -> None:
    """A disk that is not mounted takes no model with it; what was loaded goes on, and what comes then is noticed."""
    shop.configure()
    shop.put("one", 0)
    shop.put("two", 1)
    daemon = shop.place.start()
    daemon.call("Scan")
    pid = daemon.loaded("one")["child"]["pid"]
    away = shop.place.root / "away"
    shop.folder.rename(away)
    daemon.call("Scan")
    assert names(daemon) == {"spare", "one", "two"}
    assert daemon.load("two").result == "failed"
    assert shop.doors.front.chat("one", max_tokens=1).status == 200
    away.rename(shop.folder)
    daemon.call("Scan")
    assert shop.place.records()["one"]["child"]["pid"] == pid
    shop.gpudctl("reset", "two")
    assert daemon.load("two").result == "done"
    shop.put("three", 2)
    changed(daemon, NEW, "three")
    daemon.aftermath()


def hub_file(root: Path, repository: str, name: str, content: bytes) -> None:
    """A file as the hub's own library keeps it."""
    folder = root / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / sha256(content).hexdigest()
    link = folder / "snapshots" / ("a" * 40) / name
    for parent in (blob.parent, link.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs" / "main").write_text("a" * 40)


def ollama_model(root: Path, name: str, content: bytes) -> None:
    """A model as Ollama keeps it."""
    digest = f"sha256:{sha256(content).hexdigest()}"
    blobs, manifests = root / "blobs", root / "manifests" / "registry.ollama.ai" / "library" / name
    blobs.mkdir(parents=True)
    manifests.mkdir(parents=True)
    (blobs / digest.replace(":", "-")).write_bytes(content)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(content)}
    (manifests / "latest").write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))


def test_every_surface_has_the_same_models(shop: Shop) -> None:
    """By the same names, with the same facts: from a folder, the hub's cache, Ollama's store, and the configuration."""
    hub, ollama = shop.place.root / "hub", shop.place.root / "ollama"
    contents = [path.read_bytes() for path in shop.files]
    hub_file(hub, "org/Repo-GGUF", "Repo-Q8_0.gguf", contents[1])
    ollama_model(ollama, "llama-tiny", contents[2])
    shop.put("Folder", 0)
    configured = {"mine": {"engine": "embedded", "file": str(shop.files[3]), "context": 256}}
    shop.configure(configured, huggingface=[str(hub)], ollama=[str(ollama)])
    daemon = shop.place.start()
    daemon.call("Scan")
    expected = {"Folder", "Repo-Q8_0", "llama-tiny", "mine", "spare"}
    front, management, own = shop.doors.front, shop.doors.management, shop.doors.ollama
    lists: dict[str, dict[str, Any]] = {
        "ListCatalog": {plain(one)["Id"]: plain(one) for one in daemon.call("ListCatalog", "as", [])},
        "/models": {one["name"]: one for one in management.ask("/models").value},
        "/v1/models": {one["id"]: one for one in front.ask("/v1/models").value["data"]},
        "llama": {one["name"]: one for one in front.ask("/v1/models").value["models"]},
        "/api/tags": {one["name"]: one for one in own.ask("/api/tags").value["models"]},
        "gpudctl": {one["name"]: one for one in json.loads(shop.gpudctl("models", "list", "--json"))},
    }
    assert names(daemon) == expected
    for where, found in lists.items():
        tagged = {name if ":" in name else f"{name}:latest" for name in expected}
        assert found.keys() == (tagged if where == "/api/tags" else expected), where
    assert set(shop.gpudctl("models").split()) == expected
    anthropic = front.ask("/v1/models", headers={"anthropic-version": "2023-06-01"}).value["data"]
    assert {one["id"] for one in anthropic} == expected

    for name, content in zip(("Folder", "Repo-Q8_0", "llama-tiny", "mine"), contents, strict=True):
        tag = lists["/api/tags"][name if ":" in name else f"{name}:latest"]
        sizes = {
            lists["ListCatalog"][name]["SizeBytes"],
            lists["/models"][name]["size_bytes"],
            lists["/v1/models"][name]["size"],
            int(lists["llama"][name]["size"]),
            tag["size"],
            lists["gpudctl"][name]["size_bytes"],
        }
        assert sizes == {len(content)}, name
        architectures = {
            lists["ListCatalog"][name]["Architecture"],
            lists["/models"][name]["architecture"],
            lists["/v1/models"][name]["architecture"],
            lists["llama"][name]["details"]["family"],
            tag["details"]["family"],
            lists["gpudctl"][name]["architecture"],
        }
        assert architectures == {"llama"}, name
        quantizations = {
            lists["/models"][name]["quantization"],
            lists["/v1/models"][name]["quantization"],
            tag["details"]["quantization_level"],
            lists["gpudctl"][name]["quantization"],
        }
        assert len(quantizations) == 1 and quantizations != {""}, name
        shown = own.ask("/api/show", {"model": name}).value
        assert shown["details"] == tag["details"] | shown["details"] and shown["model_info"], name
        # What it would need may have been calculated meanwhile.
        again = front.ask(f"/v1/models/{name}").value
        assert again | {"estimate": None} == lists["/v1/models"][name] | {"estimate": None}
    digest = sha256(contents[1]).hexdigest()
    assert lists["/v1/models"]["Repo-Q8_0"]["digest"] == lists["/api/tags"]["Repo-Q8_0:latest"]["digest"] == digest
    modified = int((shop.folder / "Folder.gguf").stat().st_mtime)
    assert lists["/v1/models"]["Folder"]["created"] == modified
    daemon.aftermath()


# gpudctl -------------------------------------------------------------------------------------------------------------


def test_what_is_said_with_gpudctl_stays(shop: Shop) -> None:
    """Tags, aliases, priority and notes are in effect at once, and after a restart."""
    shop.configure()
    shop.put("qwen", 0)
    shop.put("phi", 1)
    daemon = shop.place.start()
    assert "2 files looked at" in shop.gpudctl("models", "scan")
    assert shop.gpudctl("models", "tag", "qwen", "chat", "night") == 'tags of "qwen": chat, night\n'
    assert shop.gpudctl("models", "untag", "qwen", "night") == 'tags of "qwen": chat\n'
    assert shop.gpudctl("models", "alias", "qwen", "best", "worst") == 'aliases of "qwen": best, worst\n'
    assert shop.gpudctl("models", "unalias", "best", "worst") == 'aliases of "qwen": best\n'
    assert shop.gpudctl("models", "set-priority", "best", "high") == 'priority of "qwen": high\n'
    assert shop.gpudctl("models", "note", "qwen", "quick", "and", "wrong") == 'notes of "qwen": quick and wrong\n'
    for words, status in (
        (("alias", "phi", "best"), 2),
        (("alias", "phi", "qwen"), 2),
        (("alias", "phi", "two words"), 2),
        (("tag", "phi", "\x1b[31m"), 2),
        (("tag", "nobody", "x"), 1),
        (("forget", "phi"), 2),
        (("info", "nobody"), 1),
        (("rm", "nobody", "--yes"), 1),
    ):
        shop.gpudctl("models", *words, status=status)
    assert shop.doors.front.chat("best", max_tokens=1).status == 200
    assert daemon.stop() == 0
    again = shop.place.start()
    (one,) = json.loads(shop.gpudctl("models", "list", "--json", "--tag", "chat"))
    assert (one["name"], one["aliases"], one["priority"], one["notes"]) == ("qwen", ["best"], "high", "quick and wrong")
    assert {"path", "engine", "architecture", "quantization", "size_bytes", "context_length", "estimate_bytes"} <= set(
        one
    )
    assert shop.gpudctl("models", "set-priority", "qwen", "default") == 'priority of "qwen": as configured\n'
    assert shop.gpudctl("models", "note", "qwen") == 'notes of "qwen": none\n'
    table = shop.gpudctl("models", "list").splitlines()
    assert table[0].split()[:3] == ["NAME", "ENGINE", "ARCHITECTURE"]
    assert [line.split()[0] for line in table[1:]] == ["phi", "qwen", "spare"]
    assert f"files         {shop.folder}/qwen.gguf\n" in shop.gpudctl("models", "info", "best")
    again.aftermath()


def test_removing_a_model_with_gpudctl(shop: Shop) -> None:
    """It is unloaded first; one that somebody holds keeps its file; what is gone can be forgotten, its past with it."""
    shop.configure()
    path = shop.put("held")
    daemon = shop.place.start()
    daemon.call("Scan")
    holder = shop.place.client()
    holder.call("LoadWithOptions", "sa{sv}", "held", {"hold": ("b", True)})
    daemon.wait_state("held", "ready")
    shop.gpudctl("models", "rm", "held", "--yes", status=4)
    assert path.exists() and daemon.state("held") == "ready"
    pid = shop.place.records()["held"]["child"]["pid"]
    (hold,) = daemon.status()["Holds"]
    holder.call("Release", "u", hold["Cookie"][1])
    shop.gpudctl("models", "tag", "held", "mine")
    assert shop.gpudctl("models", "rm", "held", "--yes").startswith('deleted "held": 1 file')
    wait_gone(pid)
    assert not path.exists() and names(daemon) == {"spare"}
    since = len(daemon.client.signals)
    shop.put("held")
    changed(daemon, NEW, "held", since=since)
    assert known(daemon, "held")["Tags"] == ["mine"]
    shop.gpudctl("models", "rm", "held", "--yes")
    assert shop.gpudctl("models", "forget", "held") == 'forgot "held"\n'
    assert names(daemon) == {"spare"}
    since = len(daemon.client.signals)
    shop.put("held")
    changed(daemon, NEW, "held", since=since)
    assert known(daemon, "held")["Tags"] == []
    daemon.aftermath()


def test_one_model_in_place_of_another(shop: Shop) -> None:
    """As the old swap scripts did it."""
    shop.configure()
    for number, name in enumerate(("a", "b", "c")):
        shop.put(name, number)
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.loaded("a")
    daemon.loaded("b")
    assert shop.gpudctl("switch", "c", "--keep", "b").startswith('loaded "c"')
    assert {name: daemon.state(name) for name in "abc"} == {"a": "unloaded", "b": "ready", "c": "ready"}
    daemon.aftermath()


def test_a_broken_file_is_shown_and_can_be_removed(shop: Shop) -> None:
    """It is no model that can be loaded, and still there to be seen by its name."""
    path = shop.folder / "broken.gguf"
    path.write_bytes(b"NO MODEL" * 1000)
    shop.configure()
    daemon = shop.place.start()
    daemon.call("Scan")
    assert names(daemon) == {"spare"}
    (one,) = json.loads(shop.gpudctl("models", "list", "--all", "--json", "broken"))
    assert one["problem"] and one["state"] == ""
    shop.gpudctl("models", "rm", "broken", "--yes")
    assert not path.exists()
    daemon.aftermath()


def test_a_stopped_process_of_a_scan_does_not_stop_the_daemon(shop: Shop) -> None:
    """It ends within its time while thousands of files are looked at, and the next one has them."""
    many = shop.folder / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"m{number}.gguf").hardlink_to(shop.put("first") if number == 0 else shop.folder / "first.gguf")
    shop.configure()
    daemon = shop.place.start()
    daemon.client.send("Scan")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    again = shop.place.start()
    again.call("Scan")
    assert names(again) == {"spare", "first"}
    assert len(known(again, "first")["Paths"]) == 3001
    settle(lambda: again.running, "it goes on")
    again.aftermath()
