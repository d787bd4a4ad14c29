"""The packages and programs that people use, unchanged, at the doors of a whole daemon with a real llama-server."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
import websockets.sync.client
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

from .doors import HELLO, Doors, open_doors
from .harness import BOUND_S, PYTHON, TOP, Daemon, Place, engine, llama_server, settle, tiny

WEBSOCKETS = TOP / "tests" / "daemon" / "websocket_engine.py"
SAID: Any = HELLO

real = pytest.mark.engines


@pytest.fixture
def doors(place: Place) -> Doors:
    return open_doors(place, default_model="tiny")


@pytest.fixture
def served(place: Place, doors: Doors) -> Iterator[Daemon]:
    """A daemon with a model that chats and one that embeds, both with a real llama-server. Nothing is loaded yet."""
    place.sections = {**place.sections, "engines": llama_server()}
    file = str(tiny(place.root / "tiny.gguf"))
    model = {"engine": "llama_server", "file": file, "context": 1024, "threads": 1}
    words = {**model, "embeddings": True, "extra_flags": ["--pooling", "mean"]}
    place.configure({"tiny": {**model, "aliases": ["small"]}, "words": words, "spare": engine()})
    daemon = place.start()
    yield daemon
    daemon.aftermath()


@real
def test_openais_package(served: Daemon, doors: Doors) -> None:
    """On both doors that speak it: the list, a chat, the same as a stream, an embedding, and a name that is wrong."""
    for door in (doors.front, doors.management):
        with openai.OpenAI(base_url=f"{door.url}/v1", api_key="unused", max_retries=0, timeout=BOUND_S) as client:
            assert {model.id for model in client.models.list()} == {"tiny", "words", "spare"}
            asked: dict[str, Any] = {"model": "small", "messages": SAID, "max_tokens": 8, "temperature": 0}
            chat = client.chat.completions.create(**asked)
            words = chat.choices[0].message.content
            assert words and chat.usage is not None and chat.usage.completion_tokens == 8
            stream = client.chat.completions.create(**asked, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == words
            found = client.embeddings.create(model="words", input=["hello", "world"])
            assert [len(one.embedding) > 0 for one in found.data] == [True, True]
            with pytest.raises(openai.NotFoundError, match=r"did you mean .*tiny") as wrong:
                client.chat.completions.create(**asked | {"model": "tinny"})
            assert wrong.value.code == "model_not_found"
            with pytest.raises(openai.InternalServerError, match="embeddings"):
                client.embeddings.create(model="tiny", input="hello")
    assert served.state("tiny") == "ready"


@real
def test_anthropics_package(served: Daemon, doors: Doors) -> None:
    """The list, tokens, a message, the same as a stream, and a name that is wrong."""
    with anthropic.Anthropic(base_url=doors.front.url, api_key="unused", max_retries=0, timeout=BOUND_S) as client:
        assert {model.id for model in client.models.list()} == {"tiny", "words", "spare"}
        asked: dict[str, Any] = {"model": "tiny", "messages": SAID, "max_tokens": 8}
        message = client.messages.create(**asked)
        assert message.usage.output_tokens == 8
        assert client.messages.count_tokens(model="tiny", messages=SAID).input_tokens == message.usage.input_tokens
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().usage.output_tokens == 8
        with pytest.raises(anthropic.NotFoundError, match="tinny"):
            client.messages.create(**asked | {"model": "tinny"})


@real
def test_ollamas_package(served: Daemon, doors: Doors) -> None:
    """gpud's own models by Ollama's door: list, show, chat, stream, generate, embed, ps, and keep_alive 0 unloads."""
    client = ollama.Client(host=doors.ollama.url, timeout=BOUND_S)
    try:
        listed = {model.model.removesuffix(":latest") for model in client.list().models if model.model}
        assert {"tiny", "words"} <= listed
        assert client.show("tiny").details is not None
        options: dict[str, Any] = {"num_predict": 8, "temperature": 0}
        chat = client.chat("tiny", SAID, options=options)
        assert chat.done and chat.eval_count == 8
        pieces = list(client.chat("tiny", SAID, options=options, stream=True))
        assert "".join(piece.message.content or "" for piece in pieces) == chat.message.content
        assert pieces[-1].done and pieces[-1].eval_count == 8
        assert client.generate("tiny", "hello", options=options).response
        found = client.embed("words", ["hello", "world"])
        assert len(found.embeddings) == 2 and all(found.embeddings)
        running = {model.model.removesuffix(":latest") for model in client.ps().models if model.model}
        assert running == {"tiny", "words"}
        client.generate("tiny", keep_alive=0)
        served.wait_state("tiny", "unloaded")
        with pytest.raises(ollama.ResponseError) as wrong:
            client.chat("tinny", SAID)
        assert wrong.value.status_code == 404 and "tinny" in str(wrong.value)
    finally:
        client._client.close()


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "-N", "--max-time", "120", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


@real
def test_curl_as_people_type_it(served: Daemon, doors: Doors) -> None:
    """With and without a model, with a placeholder for one, and as a stream; a 404 is a status and a sentence."""
    url = f"{doors.front.url}/v1/chat/completions"
    kind = ("-H", "Content-Type: application/json")
    asked = {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "temperature": 0.7,
        "max_tokens": 50,
        "stream": False,
    }
    for named in ({}, {"model": "local-model"}, {"model": "default"}, {"model": "tiny"}):
        told = json.loads(curl(url, *kind, "-d", json.dumps(asked | named)))
        assert told["choices"][0]["message"]["content"], named
        assert told["usage"]["completion_tokens"] <= 50
    streamed = curl("-i", url, *kind, "-d", json.dumps(asked | {"model": "tiny", "stream": True}))
    head, _, body = streamed.partition("\n\n")
    assert "text/event-stream" in head.lower()
    assert body.endswith("data: [DONE]\n\n")
    status = curl("-o", "/dev/null", "-w", "%{http_code}", url, *kind, "-d", json.dumps(asked | {"model": "nobodys"}))
    assert status == "404"
    health = json.loads(curl(f"{doors.front.url}/health"))
    assert health["status"] == "ok" and health["loaded_models"] == ["tiny"] and health["uptime"] >= 0


@real
def test_prometheus_reads_what_was_done(served: Daemon, doors: Doors) -> None:
    """gpud's own figures and those of the engines that run, with the model as a label, on both doors alike."""
    assert doors.front.chat("tiny", max_tokens=8).status == 200
    settle(lambda: served.model("tiny")["InFlight"] == 0, "it has answered")
    used = served.model("tiny")["LastUsedUSec"]
    for door in (doors.front, doors.management):
        told = door.ask("/metrics")
        assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(told.body.decode())}
        engines = [name for name in families if name.startswith("llamacpp:")]
        assert engines, sorted(families)
        assert {sample.labels["model"] for name in engines for sample in families[name].samples} == {"tiny"}
        requests = next(family for name, family in families.items() if name == "gpud_requests")
        assert any(
            sample.value == 1 and sample.labels["route"] == "/v1/chat/completions" and sample.labels["model"] == "tiny"
            for sample in requests.samples
            if sample.name == "gpud_requests_total"
        ), requests.samples

    assert served.model("tiny")["LastUsedUSec"] == used, "to be looked at is no use"


@real
def test_a_scrape_does_not_wait_for_an_engine_that_hangs(served: Daemon, doors: Doors, place: Place) -> None:
    """Its figures are left out, gpud's own are there in time; once it goes on, both are."""
    assert doors.front.chat("tiny", max_tokens=2).status == 200
    pid = place.records()["tiny"]["child"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = doors.front.ask("/metrics")
        assert told.status == 200
        assert b"gpud_requests_total" in told.body and b"llamacpp:" not in told.body
    finally:
        os.kill(pid, signal.SIGCONT)
    settle(lambda: b"llamacpp:" in doors.front.ask("/metrics").body, "it tells again")


@real
def test_a_request_loads_its_model_once(served: Daemon, doors: Doors, place: Place) -> None:
    """Nothing is loaded at the start; many first requests at once load it once; idleness unloads it."""
    assert doors.front.ask("/health").value["loaded_models"] == []
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(doors.front.chat("tiny", max_tokens=2).status)) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 5
    first = place.records()["tiny"]["child"]["pid"]
    assert doors.front.chat("tiny", max_tokens=2).status == 200
    assert place.records()["tiny"]["child"]["pid"] == first
    assert served.log().count('Loading "tiny"') == 1, served.log()
    assert doors.front.ask("/health").value["loaded_models"] == ["tiny"]


@real
def test_an_engines_own_pages_by_the_front_door(served: Daemon, doors: Doors) -> None:
    """llama-server's health, slots and tokens; what only looks loads nothing."""
    for path in ("/props?model=tiny", "/slots?model=tiny"):
        told = doors.front.ask(path)
        assert told.status == 409, (path, told)
    assert served.state("tiny") == "unloaded"
    assert doors.front.ask("/upstream/tiny/health").value == {"status": "ok"}
    assert doors.front.ask("/slots?model=tiny").value[0]["id"] == 0
    tokens = doors.front.ask("/v1/tokenize", {"model": "tiny", "content": "hello"}).value["tokens"]
    assert tokens
    assert doors.front.ask("/detokenize", {"model": "tiny", "tokens": tokens}).value["content"].strip() == "hello"


def test_a_websocket_passes_to_an_engine(place: Place) -> None:
    """Text, bytes, a megabyte, pings and the close code, both ways; the model counts as used as long as it is open."""
    doors = open_doors(place)
    model = {
        "engine": "custom",
        "command": [PYTHON, str(WEBSOCKETS), "${socket}"],
        "health": "/health",
        "size": "10MiB",
    }
    place.configure({"talk": model, "spare": engine()})
    daemon = place.start()
    where = f"ws://127.0.0.1:{doors.front.port}/upstream/talk/socket?a=b"
    with websockets.sync.client.connect(where, open_timeout=BOUND_S, max_size=None) as socket:
        assert daemon.model("talk")["InFlight"] == 1
        for said in ("hello", b"\0\1\2", "x" * (1 << 20)):
            socket.send(said)
            assert socket.recv(BOUND_S) == said
        assert socket.ping().wait(BOUND_S)
        socket.send("how many?")
        assert [socket.recv(BOUND_S), socket.recv(BOUND_S)] == ["how many?", "4"]
        socket.close(1000, "enough")
        assert socket.close_code == 1000
    daemon.aftermath()


def test_the_description_of_the_management_api_is_valid(place: Place) -> None:
    """As a running daemon serves it: OpenAPI 3.1, with a page that needs nothing from elsewhere."""
    doors = open_doors(place)
    place.configure({"spare": engine()})
    daemon = place.start()
    told = doors.management.ask("/openapi.json")
    OpenAPIV31SpecValidator(told.value).validate()
    assert {"/load", "/vram", "/v1/chat/completions"} <= set(told.value["paths"])
    page = doors.management.ask("/docs")
    assert page.status == 200 and b"/vram/budget" in page.body
    assert b"http://" not in page.body and b"https://" not in page.body
    daemon.aftermath()
