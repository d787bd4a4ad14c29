"""The doors of a whole daemon in everyday life: where they are, who may come in, what is loaded by them and goes."""

import base64
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

from fake_nvml.gpu import GIB, FakeGpus
from ports import free_port

from .doors import HELLO, Door, Doors, listening, open_doors, talker, to_the_end
from .harness import Daemon, Place, engine, settle

PAGE = "http://localhost:5000"


# Where they are -------------------------------------------------------------------------------------------------------


def test_the_doors_are_on_this_machine_alone(place: Place, doors: Doors) -> None:
    """Three ports of 127.0.0.1 as configured and nothing else; engines listen on none; health is answered on each."""
    place.configure({"spare": engine()})
    daemon = place.start()
    ports = {doors.front.port, doors.management.port, doors.ollama.port}
    assert listening(daemon.pid) == {f"127.0.0.1:{port}" for port in ports}
    assert daemon.load("spare").result == "done"
    assert not any(listening(pid) for pid in place.children())
    assert doors.front.ask("/health").value["status"] == "ok"
    assert doors.management.ask("/health").value["services"]["registry_db"]
    assert doors.ollama.ask("/").body == b"Ollama is running"
    daemon.aftermath()


def test_a_door_that_is_not_wanted_is_not_opened(place: Place) -> None:
    """Nor is one that is no longer wanted after a reload."""
    doors = open_doors(place, management={"enable": False})
    place.configure({"spare": engine()})
    daemon = place.start()
    assert listening(daemon.pid) == {f"127.0.0.1:{door.port}" for door in (doors.front, doors.ollama)}
    place.sections["http"] = {**place.sections["http"], "ollama": {"enable": False}}  # type: ignore[dict-item]
    place.configure({"spare": engine()})
    daemon.reload()
    assert listening(daemon.pid) == {f"127.0.0.1:{doors.front.port}"}
    daemon.aftermath()


def test_a_unix_socket_is_a_door_too(place: Place) -> None:
    """With its mode; root, whom the kernel names, may do all there, whatever keys there are."""
    path = place.root / "front.sock"
    doors = open_doors(place)
    place.sections["http"] = {
        **place.sections["http"],  # type: ignore[dict-item]
        "front": {"port": doors.front.port, "socket": str(path), "socket_mode": "0600"},
        "without_key": "none",
        "api_keys_file": str(_keys(place, "laptop")[0]),
    }
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    assert path.stat().st_mode & 0o777 == 0o600
    curl = ["curl", "-sS", "--fail-with-body", "--max-time", "120", "--unix-socket", str(path)]
    asked = json.dumps({"model": "tiny", "messages": HELLO})
    subprocess.run([*curl, "http://gpud/v1/chat/completions", "-d", asked], check=True, capture_output=True)
    assert daemon.state("tiny") == "ready"
    subprocess.run([*curl, "-X", "POST", "http://gpud/unload"], check=True, capture_output=True)
    assert daemon.state("tiny") == "unloaded"
    assert doors.front.chat("tiny").status == 401
    daemon.aftermath()
    assert not path.exists()


def test_tls_by_the_files_of_a_certificate(place: Place, localhost_pem: Path) -> None:
    """Every door speaks it; who does not is not answered with anything that is secret."""
    doors = open_doors(place, tls={"certificate": str(localhost_pem), "key": str(localhost_pem)})
    place.configure({"spare": engine()})
    daemon = place.start()
    context = ssl.create_default_context(cafile=str(localhost_pem))
    with (
        doors.front.raw() as bare,
        context.wrap_socket(bare, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b'"status":"ok"' in b"".join(iter(lambda: client.recv(65536), b""))
    with doors.front.raw() as bare:
        bare.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"spare" not in to_the_end(bare)
    daemon.aftermath()


# Who may come in ------------------------------------------------------------------------------------------------------


def _keys(place: Place, *names: str, words: tuple[str, ...] = ()) -> tuple[Path, list[str]]:
    file = place.root / "keys.yaml"
    return file, [place.type("gpudctl", "key", "add", name, "--file", str(file), *words).strip() for name in names]


def test_a_key_lets_in_for_what_it_is_given(place: Place) -> None:
    """Made by gpudctl: by either header, for its models alone, at its rate, and not for changes; a wrong one is 401,
    and no key is ever in the log.
    """
    file, (key,) = _keys(place, "laptop", words=("--allow", "tiny", "--rate", "4/min"))
    doors = open_doors(place, api_keys_file=str(file))
    place.configure({"tiny": talker(place), "secret": talker(place), "spare": engine()})
    daemon = place.start()
    bearer, header = {"Authorization": f"Bearer {key}"}, {"X-API-Key": key}
    assert doors.front.chat("tiny").status == 401
    assert doors.front.ask("/v1/models", headers={"X-API-Key": key[:-1] + "!"}).status == 401
    assert doors.front.ask("/health").status == 200, "whether it lives is no secret"
    listed = doors.front.ask("/v1/models", headers=bearer)
    assert [model["id"] for model in listed.value["data"]] == ["tiny"]
    asked = {"model": "tiny", "messages": HELLO}
    assert doors.front.ask("/v1/chat/completions", asked, headers=header).status == 200
    told = doors.front.ask("/v1/chat/completions", {**asked, "model": "secret"}, headers=header)
    assert told.status == 403, told
    told = doors.management.ask("/unload", {"model": "tiny"}, headers=bearer)
    assert told.status == 403, told
    told = [doors.front.ask("/v1/models", headers=bearer) for _ in range(4)][-1]
    assert told.status == 429 and int(told.headers["retry-after"]) >= 1
    assert daemon.state("tiny") == "ready" and daemon.state("secret") == "unloaded"
    assert key not in daemon.log()
    place.type("gpudctl", "key", "revoke", "laptop", "--file", str(file))
    daemon.reload()
    assert doors.front.ask("/v1/models", headers=bearer).status == 401
    daemon.aftermath()


def test_all_addresses_are_not_listened_on_without_keys(place: Place) -> None:
    """The rest of the world needs a key: without any configured, gpud does not start, and says what to do."""
    open_doors(place, front={"host": "0.0.0.0", "port": free_port()})
    place.configure({"spare": engine()})
    daemon = place.start(wait=False)
    assert daemon.wait_exit() != 0
    assert "api_keys" in daemon.log() and "0.0.0.0" in daemon.log()


def test_a_listed_page_comes_in_after_a_reload(place: Place) -> None:
    """Its origin is named back, never a wildcard; a preflight is 204; another page is not named."""
    doors = open_doors(place)
    place.configure({"spare": engine()})
    daemon = place.start()
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    before = doors.front.ask("/v1/models", headers={"Origin": PAGE})
    assert (before.status, "access-control-allow-origin" in before.headers) == (403, False)
    assert doors.front.ask("/v1/models", method="OPTIONS", headers=preflight).status == 403
    place.sections["http"] = {**place.sections["http"], "cors_origins": [PAGE]}  # type: ignore[dict-item]
    place.configure({"spare": engine()})
    daemon.reload()
    after = doors.front.ask("/v1/models", headers={"Origin": PAGE})
    assert (after.status, after.headers["access-control-allow-origin"]) == (200, PAGE)
    told = doors.front.ask("/v1/chat/completions", method="OPTIONS", headers=preflight)
    assert (told.status, told.headers["access-control-allow-origin"]) == (204, PAGE)
    other = doors.front.ask("/v1/models", headers={"Origin": "http://localhost:5001"})
    assert "access-control-allow-origin" not in other.headers
    daemon.aftermath()


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_listed_and_unloaded_by_the_front_door(place: Place, doors: Doors) -> None:
    """In the words of those who did it by hand until now: load, status, unload one, unload all, and what is unknown."""
    place.configure({"eager": talker(place, preload=True), "tiny": talker(place), "spare": engine()})
    daemon = place.start()
    daemon.wait_state("eager", "ready")
    told = doors.front.ask("/models/load", {"model": "tiny", "service": "custom", "priority": 5})
    assert told.status == 200, told
    assert {"model", "service", "loaded_at", "status"} <= set(told.value)
    assert (told.value["model"], told.value["service"], told.value["status"]) == ("tiny", "custom", "loaded")
    assert set(doors.front.ask("/models/status").value["loaded_models"]) == {"eager", "tiny"}
    told = doors.front.ask("/models/unload", {"model": "tiny"})
    assert (told.status, told.value["status"], told.value["service"]) == (200, "unloaded", "custom")
    settle(lambda: len(place.children()) == 1, "its process is gone")
    assert doors.front.ask("/models/unload", {"model": "tiny"}).value["status"] == "not_loaded"
    told = doors.front.ask("/admin/unload", {"model": "eager"})
    assert told.value == {"status": "success", "message": "Model 'eager' unloaded"}
    assert doors.front.ask("/admin/unload", {}).status == 400
    assert doors.front.ask("/admin/unload", {"model": "nobodys"}).status == 404
    assert doors.front.chat("tiny").status == 200
    told = doors.front.ask("/admin/unload", {"model": "all"})
    assert told.value == {"status": "success", "message": "Unloaded 1 model"}
    assert doors.front.chat("tiny").status == 200
    told = doors.front.ask("/models/unload", method="POST")
    assert (told.value["success"], told.value["unloaded"], told.value["errors"]) == (True, ["tiny"], [])
    daemon.aftermath()


def test_names_are_exact_and_forgiving_where_that_is_safe(place: Place, doors: Doors) -> None:
    """An alias and .gguf are the model, another case is a 404 that names it; a program that vanished is a 500 with a
    sentence, and the log has the word error.
    """
    place.configure(
        {
            "Qwen3-8B": talker(place, aliases=["qwen3-vl-30b"]),
            "gone": {**talker(place), "command": [str(place.root / "no-such-engine"), "${socket}"]},
            "spare": engine(),
        }
    )
    daemon = place.start()
    for name in ("Qwen3-8B", "Qwen3-8B.gguf", "qwen3-vl-30b"):
        assert doors.front.chat(name).status == 200, name
    told = doors.front.chat("qwen3-8b")
    assert (told.status, told.error["type"]) == (404, "model_not_found")
    assert 'did you mean "Qwen3-8B"' in told.error["message"]
    told = doors.front.chat("gone")
    assert told.status == 500 and "no-such-engine" in told.error["message"] and "is not there" in told.error["message"]
    assert "error" in daemon.wait_log("no-such-engine")
    daemon.aftermath()


def test_what_was_asked_reaches_the_engine_as_it_was_asked(place: Place, doors: Doors) -> None:
    """Images, tools, and numbers with all their digits: byte for byte; nothing is added that was not there."""
    place.configure({"tiny": talker(place, aliases=["small"]), "spare": engine()})
    daemon = place.start()
    body = (
        b'{ "messages":[{"role":"user","content":"look","images":["aGVsbG8="]}],\t"temperature":0.70000000000000007,'
        b'"max_tokens":50, "tools":[{"type":"function","function":{"name":"f","parameters":{"z":1,"a":2}}}],'
        b'"tool_choice":"auto", "model":"small"}'
    )
    told = doors.front.ask("/v1/chat/completions", body)
    assert told.status == 200, told
    assert base64.b64decode(told.value["body"]) == body
    assert "authorization" in told.value["headers"] and "cookie" not in told.value["headers"]
    daemon.aftermath()


def test_a_stream_arrives_while_it_is_made(place: Place, doors: Doors) -> None:
    """Two events of an engine that then says nothing more are there; what happens is told as events, too."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    body = {"model": "tiny", "messages": HELLO, "stream": True, "do": "stall"}
    with (
        doors.front.open("/api/events") as events,
        doors.front.open("/v1/chat/completions", body) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert [stream.line(), stream.line()] == [b'data: {"number": 0}', b'data: {"number": 1}']
        assert daemon.model("tiny")["InFlight"] == 1
        assert any(b"tiny" in line and b"ready" in line for line in iter(events.line, b""))
    settle(lambda: daemon.model("tiny")["InFlight"] == 0, "both have left")
    daemon.aftermath()


def test_nothing_remains_after_the_last_idle_model(place: Place, doors: Doors) -> None:
    """After its idle time no child is there, and the daemon is small after hundreds of requests."""
    place.configure({"tiny": talker(place, idle_timeout="300ms"), "spare": engine()})
    daemon = place.start()
    answers = {doors.front.chat("tiny").status for _ in range(300)}
    assert answers == {200}
    daemon.wait_state("tiny", "unloaded")
    settle(lambda: not place.children(), "its engine is gone")
    assert doors.front.ask("/health").value["loaded_models"] == []
    assert daemon.memory_kib() < 80 << 10
    daemon.aftermath()


def test_a_reload_is_asked_for_and_refused_over_http(place: Place, doors: Doors) -> None:
    """What is new holds at once; what is invalid is 400 with every problem, and the old configuration stays."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    place.configure({"tiny": talker(place), "fresh": talker(place), "spare": engine()}, idle={"timeout": "77s"})
    told = doors.front.ask("/admin/reload", method="POST")
    assert (told.status, told.value["status"]) == (200, "success")
    assert told.value["config"]["idle_timeout_seconds"] == 77
    assert doors.front.chat("fresh").status == 200
    place.configure({"tiny": talker(place), "spare": engine()}, idle={"timeout": "soon", "tiem": 1})
    told = doors.front.ask("/admin/reload", method="POST")
    assert (told.status, told.error["type"]) == (400, "config_invalid"), told
    assert "timeout" in told.error["message"] and "tiem" in told.error["message"]
    assert doors.front.chat("fresh").status == 200
    assert doors.front.ask("/admin/reload").status == 405
    daemon.aftermath()


# The management API ---------------------------------------------------------------------------------------------------


def test_the_management_api_as_people_ask_it(place: Place) -> None:
    """Health, memory, models by name and number, backends and a load, with curl and a GPU."""
    doors = open_doors(place)
    with FakeGpus(place.root / "gpus", 6 * GIB) as gpus:
        place.environment |= gpus.environment()
        place.configure({"llama3.2": talker(place), "spare": engine()})
        daemon = place.start()
        _ask_management(daemon, doors.management)
        assert daemon.stop() == 0


def _ask_management(daemon: Daemon, door: Door) -> None:
    health = _curl(f"{door.url}/health")
    assert health["status"] in ("healthy", "degraded")
    assert {"registry_db", "models_path", "vram_monitor"} <= set(health["services"])
    vram = _curl(f"{door.url}/vram/status")
    assert (vram["total_gb"], len(vram["gpus"])) == (6.0, 1) and "processes" in vram
    assert set(_curl(f"{door.url}/vram")) == set(vram)
    models = _curl(f"{door.url}/models")
    assert {model["name"] for model in models} == {"llama3.2", "spare"}
    one = _curl(f"{door.url}/models/llama3.2")
    assert _curl(f"{door.url}/models/{one['id']}") == one
    told = door.ask("/models?format=GGUF'%20OR%201=1")
    assert told.status == 400 and b"llama3.2" not in told.body, "nothing that is made up finds a model"
    told = door.ask("/models/unknown")
    assert (told.status, told.error["type"]) == (404, "model_not_found")
    backends = {backend["name"]: backend for backend in _curl(f"{door.url}/backends")}
    assert {"ollama", "llamacpp", "vllm", "tgi"} <= set(backends)
    assert backends["vllm"]["status"] == "inactive"
    wrong = door.ask("/inference", {"model": "llama3.2", "prompt": "hello", "backend": "llamacpp"})
    assert wrong.status in (400, 404) and "custom" in wrong.error["message"], wrong
    told = door.ask("/load", {"model": one["name"], "priority": "high"})
    assert (told.status, told.value["status"]) == (200, "loaded")
    assert daemon.state("llama3.2") == "ready"
    assert _curl(f"{door.url}/queue") == {"depth": 0, "queue": []}


def _curl(url: str) -> Any:
    done = subprocess.run(["curl", "-sS", "--fail", "--max-time", "120", url], capture_output=True, check=True)
    return json.loads(done.stdout)
