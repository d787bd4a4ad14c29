"""Editors and agents, as docs/http.md has them: each setting is followed to the paths that such a program asks for, and
the command that frees memory is run as it is written.
"""

import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import pytest
from dbus.private_bus import session_bus
from fake_nvml.gpu import FakeGpus

from .doors import HELLO, Door, Doors, open_doors, talker
from .harness import BOUND_S, TOP, Place, on_gpu, place_at

PAGE = (TOP / "docs" / "http.md").read_text()
(SECTION,) = re.findall(r"^## Editors and agents$(.*?)^## ", PAGE, re.M | re.S)
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ") and "`" in line]
(FREEING,) = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.M | re.S)
BODY = {
    "model": "tiny",
    "messages": HELLO,
    "prompt": "def f(",
    "input_prefix": "def f(",
    "input_suffix": "",
    "max_tokens": 8,
}


@pytest.fixture(scope="module")
def doors(module_place: Place) -> Doors:
    found = open_doors(module_place)
    module_place.configure({"tiny": talker(module_place)})
    assert module_place.start().load("tiny").result == "done"
    return found


@pytest.fixture(scope="module")
def module_place() -> Iterator[Place]:
    """For the one gpud that all programs ask."""
    with session_bus() as bus, place_at(bus.address) as made:
        yield made


def door_of(url: str, doors: Doors) -> Door:
    """The door that is meant by an address with one of the usual ports."""
    return {8080: doors.front, 11434: doors.ollama}[urlsplit(url).port or 0]


def base_of(row: str) -> str:
    (base,) = re.findall(r"`?[A-Za-z_: =]*(http://127\.0\.0\.1:\d+[^`\"]*)`", row.split(" | ")[1])[:1]
    return str(base)


@pytest.mark.parametrize("row", ROWS, ids=[row.split(" | ")[0].strip("| ") for row in ROWS])
def test_a_program_that_is_set_so_is_answered(doors: Doors, row: str) -> None:
    """On each path that it asks for, below the address that it was given."""
    base = base_of(row)
    asked = re.findall(r"`(?:(GET|POST) )?(/[\w/]+)`", row.split(" | ")[2])
    assert asked
    for method, path in asked:
        assert path.startswith(urlsplit(base).path), (base, path)
        more = {"headers": {"anthropic-version": "2023-06-01"}} if "ANTHROPIC" in row else {}
        told = door_of(base, doors).ask(path, None if method == "GET" else BODY, **more)
        assert told.status == 200, (path, told)


def test_openais_library_is_answered_at_that_address(doors: Doors) -> None:
    """What most of these programs are made with, by the address and the model of the page's first row."""
    url, name = re.findall(r"`([^`]+)`", ROWS[0])[:2]
    url = url.replace("127.0.0.1:8080", f"127.0.0.1:{door_of(url, doors).port}")
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=BOUND_S) as client:
        assert [model.id for model in client.models.list()] == [name]
        chat = client.chat.completions.create(model=name, messages=HELLO)  # type: ignore[arg-type]
        assert chat.usage is not None and chat.usage.completion_tokens == 3


# Freeing memory -------------------------------------------------------------------------------------------------------


def test_four_gigabytes_are_freed_and_no_more_models_than_that_takes(place: Place, gpus: FakeGpus) -> None:
    """The one that is missed least goes, as soon as the command has ended the memory can be had, and it says so."""
    models = {"idle": on_gpu(place, gpus, "idle", 3), "kept": on_gpu(place, gpus, "kept", 1, pinned=True)}
    place.configure(models, gpu={"reserve": "256MiB"})
    daemon = place.start()
    for name in models:
        assert daemon.load(name).result == "done", daemon.log()
    assert place.type(*FREEING.split()) == ""
    assert (daemon.state("idle"), daemon.state("kept")) == ("unloaded", "ready")
    (gpu,) = json.loads(place.type("gpudctl", "vram", "--json"))["gpus"]
    assert gpu["available_bytes"] >= 4_000_000_000
    assert daemon.stop() == 0


def test_what_cannot_be_freed_is_refused_with_what_is_in_the_way(place: Place, gpus: FakeGpus) -> None:
    """Status 4, and a sentence with the numbers; what was loaded stays."""
    place.configure({"kept": on_gpu(place, gpus, "kept", 3, pinned=True)}, gpu={"reserve": "256MiB"})
    daemon = place.start()
    assert daemon.load("kept").result == "done", daemon.log()
    assert "30s" in FREEING
    assert re.search(r"needs 3\.7 GiB, .* GiB", place.type(*FREEING.replace("30s", "0").split(), status=4))
    assert daemon.state("kept") == "ready"
    assert daemon.stop() == 0
