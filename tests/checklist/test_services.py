"""Services that gpud does not bring: added by configuration alone, or by a package that somebody installs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
import yaml
from daemon.harness import ENGINE, PYTHON, TOP, Place, engine, gone

PAGE = TOP / "docs" / "adding-a-service.md"


def blocks(language: str) -> list[str]:
    """What the page shows in that language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def install(place: Place) -> Path:
    """The page's package as an installer leaves it; the daemons of the place find it. Returns its module."""
    site = place.root / "site"
    information = site / "acme_engine-1.0.dist-info"
    information.mkdir(parents=True)
    module = site / "acme_engine.py"
    module.write_text(blocks("python")[0])
    (toml,) = blocks("toml")
    (group, name, value) = re.findall(r'entry-points\."(.+?)"\]\n(\w+) = "(.+?)"', toml)[0]
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-engine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    place.environment["PYTHONPATH"] = str(site)
    return module


def acme_server(place: Place) -> str:
    program = place.root / "acme-server"
    program.write_text(f'#!/bin/sh\nexec {PYTHON} -E -s {ENGINE} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_a_service_is_added_by_configuration_alone(place: Place) -> None:
    """A program that nobody wrote for gpud, on a port of gpud's choice: taken up by a reload, supervised, unloaded."""
    place.configure({"spare": engine()})
    daemon = place.start()
    program = "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), "
    program += "http.server.SimpleHTTPRequestHandler).serve_forever()"
    service = {
        "engine": "custom",
        "command": [sys.executable, "-c", program, "${port}"],
        "health": "/",
        "size": "30MiB",
    }
    place.configure({"spare": engine(), "files": {**service, "directory": str(place.root)}})
    daemon.reload()
    pid = daemon.loaded("files")["child"]["pid"]
    model = daemon.model("files")
    assert model["State"] == "ready" and model["Port"] > 0 and model["Pid"] == pid
    since = len(daemon.client.signals)
    place.kill(pid)
    daemon.client.wait_signal(lambda s: s.body[:2] == ("files", "failed"), since=since)
    daemon.wait_state("files", "ready")
    assert daemon.model("files")["Restarts"] == 1
    daemon.aftermath()


def test_a_package_brings_an_engine(place: Place) -> None:
    """The package of the page, installed beside gpud: its engine loads, crashes, comes back, is refused with its own
    words, and is unloaded, as every other."""
    install(place)
    models = {"mine": {"engine": "acme", "size": "2MiB"}, "spare": engine()}
    place.configure(models, engines={"acme": {"binary": acme_server(place)}})
    daemon = place.start()
    pid = daemon.loaded("mine")["child"]["pid"]
    assert daemon.model("mine")["Backend"] == "acme"
    since = len(daemon.client.signals)
    place.kill(pid)
    daemon.client.wait_signal(lambda s: s.body[:2] == ("mine", "failed"), since=since)
    daemon.wait_state("mine", "ready")
    assert daemon.unload("mine").result == "done"
    late = {**models["mine"], "extra_flags": ["--never-healthy"], "load_timeout": 1}
    dead = {**models["mine"], "extra_flags": ["--exit-at-once", "3", "--say", "no cheese left"]}
    place.configure({**models, "late": late, "dead": dead}, engines={"acme": {"binary": acme_server(place)}})
    daemon.reload()
    assert "was not ready within 1 s" in daemon.load("late").message
    assert "acme-server exited with status 3" in daemon.load("dead").message
    daemon.wait_log("no cheese left")
    place.configure(models, engines={"acme": {"binary": "/no/such/acme-server"}})
    daemon.reload()
    assert "set engines.acme.binary" in daemon.load("mine").message
    daemon.aftermath()


def test_the_package_of_the_page_fulfils_the_protocols(tmp_path: Path) -> None:
    """Its types are right, as strictly as gpud's own."""
    module = tmp_path / "acme_engine.py"
    shown = blocks("python")[0]
    module.write_text(f"{shown}\n\nfrom gpud.core.ports import Backend\n\nmade: type[Backend] = Acme\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(module)], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    wanted = [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "acme_engine.py", "-"]
    assert subprocess.run(wanted, input=shown, cwd=TOP, text=True, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_the_configurations_of_the_page_are_valid(place: Place, number: int) -> None:
    """Each is taken as it stands, with the page's package installed."""
    install(place)
    text = blocks("yaml")[number]
    (place.root / "page.yaml").write_text(text)
    done = subprocess.run(
        [PYTHON, "-m", "gpud.cli", "config", "check", str(place.root / "page.yaml")],
        cwd=TOP,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": place.environment["PYTHONPATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"OK: {len(yaml.safe_load(text)['models'])} model" in done.stdout


def test_engines_of_two_kinds_obey_one_scheduler(place: Place) -> None:
    """A model of llama.cpp and a program of somebody's share one budget, whichever came first."""
    file = str(tiny_model.write(place.root / "tiny.gguf"))
    place.configure(
        {
            "tiny": {"engine": "embedded", "file": file, "size": "300MiB"},
            "other": engine(size="300MiB"),
            "spare": engine(),
        },
        gpu={"budget": "400MiB"},
    )
    daemon = place.start()
    first = daemon.loaded("tiny")["child"]["pid"]
    assert daemon.load("other").result == "done"
    assert gone(first) and daemon.state("tiny") == "unloaded"
    assert daemon.load("tiny").result == "done"
    assert daemon.state("other") == "unloaded"
    assert daemon.property("LoadedModels") == ["tiny"]
    daemon.aftermath()


def test_three_keys_are_enough_for_a_daemon_with_a_model(place: Place) -> None:
    """A name, an engine and a file: the rest of the whole file has defaults."""
    file = str(tiny_model.write(place.root / "tiny.gguf"))
    place.config.write_text(f"models:\n  tiny:\n    engine: embedded\n    file: {file}\n")
    daemon = place.start()
    assert daemon.load("tiny").result == "done", daemon.log()
    model = daemon.model("tiny")
    assert (model["Backend"], model["State"], model["ContextSize"]) == ("embedded", "ready", 4096)
    assert daemon.property("IdleTimeoutUSec") == 300_000_000
    daemon.aftermath(spare="tiny")
