"""Somebody comes from llama-swap: what they have is imported, and gpud serves it with the same programs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model
from daemon.harness import BOUND_S, ENGINE, TOP, Place, engine, place_at
from dbus.private_bus import session_bus

OLD = """\
macros:
  server: {binary} --host 127.0.0.1 --port ${{PORT}}
models:
  tiny:
    cmd: |
      # what they had for years
      ${{server}} -m {folder}/tiny.gguf -c 512 -np 1 \\
        -ngl 0 --threads 1 --temp 0.5 --jinja --metrics
    aliases: [small]
    ttl: 300
  program:
    cmd: {python} {engine} --port ${{PORT}}
    env: ["SAID=${{MODEL_ID}} costs 5$"]
"""


@pytest.fixture
def place() -> Iterator[Place]:
    with session_bus() as bus, place_at(bus.address) as made:
        yield made


def line_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.mark.engines
def test_what_llama_swap_had_is_served(place: Place) -> None:
    """A drop-in is written, gpud starts with it, and each model is started with what its command said."""
    made = subprocess.run([TOP / "tests" / "provision", "llama-server"], capture_output=True, text=True, check=True)
    binary = Path(made.stdout.strip()) / "site" / "bin" / "llama-server"
    tiny_model.write(place.root / "tiny.gguf")
    old, target = place.root / "config.yaml", place.root / "gpud.d" / "50-old.yaml"
    old.write_text(OLD.format(binary=binary, folder=place.root, python=sys.executable, engine=ENGINE))
    target.parent.mkdir()
    place.configure({"spare": engine()})
    words = [sys.executable, "-m", "gpud.cli", "import", "llama-swap", str(old), "--output", str(target)]
    subprocess.run(words, cwd=TOP, check=True, capture_output=True, timeout=BOUND_S)

    daemon = place.start()
    line = line_of(daemon.loaded("tiny")["child"]["pid"])
    assert line[0] == str(binary)
    for flag, value in (("--ctx-size", "512"), ("--gpu-layers", "0"), ("--threads", "1"), ("--temp", "0.5")):
        assert line[line.index(flag) + 1] == value
    assert daemon.load("small").result == "done"
    pid = daemon.loaded("program")["child"]["pid"]
    assert line_of(pid)[:3] == [sys.executable, str(ENGINE), "--port"]
    assert line_of(pid)[3].isdecimal()
    assert "SAID=program costs 5$" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    daemon.aftermath()
