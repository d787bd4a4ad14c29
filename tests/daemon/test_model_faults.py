"""What people and programs do to folders of models, with the real daemon: it serves on, and loses nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from catalog import trees
from catalog.test_gguf_hostile import CORPUS, array, head, sparse

from gpud.catalog.stream import STRINGS_LIMIT

from .doors import HELLO
from .harness import PYTHON, Client, Place, engine, settle, wait_gone
from .test_models import CHANGED, GONE, NEW, WRITER, Shop, changed, known, names

KILLS = 6

MANY = 1_000

GROWN_KIB = 64 << 10
"""What reading the worst files may cost the daemon and leave behind; the allocator's share included."""


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, different ones."""
    folder = tmp_path_factory.mktemp("tiny")
    for seed in range(2):
        command = [sys.executable, str(WRITER), str(folder / f"{seed}.gguf"), "--seed", str(seed), "--name", f"t{seed}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.iterdir())


@pytest.fixture
def shop(place: Place, tiny_files: list[Path]) -> Shop:
    return Shop(place, tiny_files)


def test_hostile_files_in_a_shared_folder_stop_nobody(shop: Shop) -> None:
    """They are looked at while everybody is answered, are told with what is wrong, and cost no memory for good."""
    shop.configure()
    shop.put("good")
    daemon = shop.place.start()
    daemon.call("Scan")
    assert daemon.load("good").result == "done"
    before_kib = daemon.memory_kib()
    hostile = shop.folder / "hostile"
    hostile.mkdir()
    for number, (content, _) in enumerate(CORPUS.values()):
        (hostile / f"h{number}.gguf").write_bytes(content)
    for number in range(3):
        # Each takes seconds of a processor, and is no model.
        start = head(0, 1) + array(8, STRINGS_LIMIT - number)
        sparse(hostile / f"slow{number}.gguf", start, 1 << 30)
    client = Client(shop.place.address)
    scan = threading.Thread(target=client.call, args=("Scan",))
    scan.start()
    answers, meanwhile = [], 0
    while scan.is_alive():
        answers.append(shop.doors.front.ask("/health").status)
        answers.append(shop.doors.front.chat("good", max_tokens=1).status)
        meanwhile += scan.is_alive()
    scan.join()
    client.close()
    assert meanwhile and set(answers) == {200}, f"{meanwhile} rounds were answered before the look ended: {answers}"
    assert names(daemon) == {"spare", "good"}
    assert known(daemon, "slow1")["Problem"], "it has no architecture"
    assert daemon.load("good").result == "done"
    assert daemon.memory_kib() - before_kib < GROWN_KIB
    daemon.aftermath()


def test_a_folder_with_thousands_of_models_holds_up_nobody(shop: Shop) -> None:
    """Who asks meanwhile is answered; then every surface has all of them, and each can be named."""
    shop.configure()
    shop.put("good")
    daemon = shop.place.start()
    daemon.call("Scan")
    assert daemon.load("good").result == "done"
    trees.many(shop.place.root / "made", MANY)
    (shop.place.root / "made").rename(shop.folder / "many")
    client = Client(shop.place.address)
    scan = threading.Thread(target=client.call, args=("Scan",))
    scan.start()
    answers = [shop.doors.front.chat("good", max_tokens=1).status]
    while scan.is_alive():
        answers.append(shop.doors.front.ask("/health").status)
    scan.join()
    client.close()
    assert set(answers) == {200}
    wanted = {"spare", "good", *(f"m{number:05}" for number in range(MANY))}
    assert names(daemon) == wanted
    assert {one["id"] for one in shop.doors.front.ask("/v1/models").value["data"]} == wanted
    assert set(shop.gpudctl("models").split()) == wanted
    listed = json.loads(shop.gpudctl("models", "list", "--json"))
    assert {one["name"] for one in listed} == wanted and all(one["path"] for one in listed if one["name"] != "spare")
    assert known(daemon, f"m{MANY - 1:05}")["TrainedContext"] == 8192
    shop.gpudctl("models", "tag", "m00001", "one")
    assert known(daemon, "m00001")["Tags"] == ["one"]
    daemon.aftermath()


def test_names_that_are_no_text_are_told_and_harmless(shop: Shop) -> None:
    """A line break or an escape in a file's name reaches no terminal; bytes that are no text are told as such."""
    shop.configure()
    shutil.copy(shop.files[0], shop.folder / "two\nlines\x1b[31m.gguf")
    shutil.copy(shop.files[1], os.fsencode(shop.folder) + b"/\xff\xfe.gguf")
    daemon = shop.place.start()
    daemon.call("Scan")
    assert names(daemon) == {"spare", "two-nlines-x1b-31m"}
    assert shop.doors.front.chat("two-nlines-x1b-31m", max_tokens=1).status == 200
    for words in (("models", "list"), ("models", "info", "two-nlines-x1b-31m"), ("models", "scan")):
        said = shop.gpudctl(*words)
        assert "\x1b" not in said and "two\nlines" not in said
    assert "its name is not UTF-8" in shop.gpudctl("models", "scan")
    daemon.aftermath()


def test_a_file_that_is_cut_off_is_no_model_until_it_is_whole(shop: Shop) -> None:
    """After it was listed, and while another answers: it goes, and has its name and its past again."""
    shop.configure()
    path = shop.put("cut")
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.call("Annotate", "sa{sv}", "cut", {"tags": ("as", ["mine"])})
    since = len(daemon.client.signals)
    with path.open("r+b") as file:
        file.truncate(1000)
    changed(daemon, GONE, "cut", since=since)
    assert shop.doors.front.chat("cut").status == 404
    since = len(daemon.client.signals)
    shop.put("cut")
    changed(daemon, NEW, "cut", since=since)
    assert known(daemon, "cut")["Tags"] == ["mine"]
    assert shop.doors.front.chat("cut", max_tokens=1).status == 200
    daemon.aftermath()


def test_a_scan_that_is_killed_loses_nothing(shop: Shop) -> None:
    """Again and again, with other files each time: what was said stays, and the next look has all that is there."""
    shop.configure()
    shop.put("kept")
    daemon = shop.place.start()
    daemon.call("Scan")
    daemon.call("Annotate", "sa{sv}", "kept", {"tags": ("as", ["mine"]), "aliases": ("as", ["best"])})
    number = known(daemon, "kept")["Number"]
    for turn in range(KILLS):
        for index in range(50):
            # Of other sizes: else they were copies.
            path = shop.put(f"m{turn}-{index}", 1)
            with path.open("ab") as file:
                file.write(bytes(1 + turn * 50 + index))
        daemon.client.send("Scan")
        daemon.call("ListModels")
        daemon.kill9()
        daemon = shop.place.start()
    daemon.call("Scan")
    there = names(daemon)
    assert there == {"spare", "kept"} | {f"m{turn}-{index}" for turn in range(KILLS) for index in range(50)}
    assert (known(daemon, "best")["Number"], known(daemon, "kept")["Tags"]) == (number, ["mine"])
    assert "damaged" not in daemon.log()
    daemon.aftermath()


def test_a_copy_of_a_loaded_model_disturbs_nobody(shop: Shop) -> None:
    """Whatever it is called: the engine goes on from the file that it has."""
    shop.configure()
    shop.put("model")
    daemon = shop.place.start()
    daemon.call("Scan")
    pid = daemon.loaded("model")["child"]["pid"]
    shop.put("a-copy")
    changed(daemon, CHANGED, "model")
    assert shop.doors.front.chat("a-copy", max_tokens=1).status == 200
    assert shop.place.records()["model"]["child"]["pid"] == pid
    daemon.aftermath()


def test_a_model_that_was_loaded_before_the_first_look_stays(shop: Shop) -> None:
    """It is loaded as gpud starts, and its file is seen for the first time after that."""
    path = shop.put("there")
    shop.configure({"first": {"engine": "embedded", "file": str(path), "preload": True}})
    daemon = shop.place.start()
    daemon.wait_state("first", "ready")
    pid = shop.place.records()["first"]["child"]["pid"]
    daemon.call("Scan")
    assert known(daemon, "first")["Architecture"] == "llama"
    assert shop.doors.front.chat("first", max_tokens=1).status == 200
    assert shop.place.records()["first"]["child"]["pid"] == pid
    assert daemon.unload("first").result == "done"
    wait_gone(pid)
    daemon.aftermath()


def test_the_default_model_may_come_later(shop: Shop) -> None:
    """Until then whoever names none is told which is missing; it works as soon as the file is there."""
    shop.place.sections = {**shop.place.sections, "http": {**shop.place.sections["http"], "default_model": "late"}}
    shop.configure()
    daemon = shop.place.start()
    told = shop.doors.front.ask("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    assert told.status == 404 and '"late"' in told.error["message"]
    shop.put("late")
    changed(daemon, NEW, "late")
    told = shop.doors.front.ask("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    assert told.status == 200 and told.value["model"] == "late"
    daemon.aftermath()


def test_a_key_lets_in_for_found_models_by_name(shop: Shop) -> None:
    """One that comes after the key was made, too; others are not even listed."""
    file = shop.place.root / "keys"
    command = [PYTHON, "-m", "gpud.cli", "key", "add", "laptop", "--file", str(file), "--allow", "mine"]
    key = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    shop.place.sections = {**shop.place.sections, "http": {**shop.place.sections["http"], "api_keys_file": str(file)}}
    shop.configure({"spare": engine()})
    daemon = shop.place.start()
    bearer = {"Authorization": f"Bearer {key}"}
    shop.put("mine", 0)
    shop.put("other", 1)
    changed(daemon, NEW, "mine")
    settle(lambda: {"mine", "other"} <= names(daemon), "both are there")
    listed = shop.doors.front.ask("/v1/models", headers=bearer)
    assert [model["id"] for model in listed.value["data"]] == ["mine"]
    statuses = {
        name: shop.doors.front.ask(
            "/v1/chat/completions", {"model": name, "messages": HELLO, "max_tokens": 1}, headers=bearer
        ).status
        for name in ("mine", "mine.gguf", "other")
    }
    assert statuses == {"mine": 200, "mine.gguf": 200, "other": 403}
    daemon.aftermath()
