"""The command itself: what goes where, what it will not do, and that nothing of its input is ever run."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from import_cases import CASES, DIGESTS, GOLDEN, SECRETS, Case

from gpud.cli import main

TOP = Path(__file__).resolve().parent.parent.parent
BOUND_S = 60

SWAP = """\
models:
  a:
    cmd: llama-server --port ${PORT} -m /m/a.gguf -c 4096
    name: The first
"""


def gpudctl(*words: str | Path, where: Path, given: str | bytes = b"", **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gpud.cli", *map(str, words)],
        cwd=where,
        env={"PATH": os.environ["PATH"], "HOME": str(where), "LANG": "C.UTF-8", "PYTHONPATH": str(TOP), **more},
        input=given.encode() if isinstance(given, str) else given,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


Inside = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The same in this process, for what needs no process of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        status = main(words)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    return run


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A configuration of llama-swap."""
    path = tmp_path / "config.yaml"
    path.write_text(SWAP)
    return path


def test_the_configuration_goes_to_standard_output_and_the_report_does_not(old: Path) -> None:
    """A script can take the one, and a person reads the other; settings that are left out do not change the status."""
    done = gpudctl("import", "llama-swap", "config.yaml", where=old.parent)
    assert done.returncode == 0
    config = yaml.safe_load(done.stdout)
    assert config["models"]["a"] == {"engine": "llama_server", "file": "/m/a.gguf", "context": 4096}
    assert "# cmd -m, line 3" in done.stdout
    assert done.stderr.startswith("llama-swap, config.yaml: 1 model; settings: 3 carried over, 1 not needed by gpud")
    assert "\nnot carried over:\n  config.yaml:4:5: models.a.name: " in done.stderr


def test_check_says_everything_and_prints_no_configuration(old: Path) -> None:
    """Also what is carried over, and where it is now."""
    done = gpudctl("import", "llama-swap", "config.yaml", "--check", where=old.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  config.yaml:3:5: models.a.cmd -m → models.a.file\n" in done.stdout
    assert "models.a.cmd --port: gpud listens for the engine on a private address" in done.stdout


def test_json_has_all_of_it(old: Path) -> None:
    """The notes with their places, the configuration as data and as text."""
    data = json.loads(gpudctl("import", "llama-swap", "config.yaml", "--json", where=old.parent).stdout)
    assert data["models"] == ["a"]
    assert data["config"] == yaml.safe_load(data["yaml"])
    assert data["counts"] == {"carried": 3, "needless": 1, "changed": 1, "dropped": 1}
    (name,) = [note for note in data["notes"] if note["fate"] == "dropped"]
    assert (name["file"], name["line"], name["column"], name["setting"]) == ("config.yaml", 4, 5, "models.a.name")


def test_output_writes_a_file_that_gpud_takes(old: Path) -> None:
    """And says what to do with it."""
    done = gpudctl("import", "llama-swap", "config.yaml", "--output", "gpud.yaml", where=old.parent)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("wrote gpud.yaml\n")
    target = old.parent / "gpud.yaml"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert sorted(one.name for one in old.parent.iterdir()) == ["config.yaml", "gpud.yaml"]
    check = gpudctl("config", "check", "gpud.yaml", where=old.parent)
    assert check.returncode == 0
    assert check.stdout.endswith(f"OK: 1 model (a) in {target}\n") or "OK: 1 model (a)" in check.stdout


def test_a_file_that_is_there_is_kept(old: Path) -> None:
    """Without --force; with it, its mode is kept, and a link is followed."""
    target = old.parent / "real.yaml"
    target.write_text("mine")
    target.chmod(0o600)
    link = old.parent / "gpud.yaml"
    link.symlink_to(target)
    done = gpudctl("import", "llama-swap", "config.yaml", "--output", link, where=old.parent)
    assert done.returncode == 1
    assert done.stderr == f'gpudctl: will not write "{link}": it already exists; --force replaces it; or name another\n'
    assert target.read_text() == "mine"
    done = gpudctl("import", "llama-swap", "config.yaml", "--output", link, "--force", where=old.parent)
    assert done.returncode == 0
    assert link.is_symlink()
    assert target.read_text().startswith("# Made by")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("target", ["no/such/folder/gpud.yaml", "."])
def test_what_cannot_be_written_is_said(old: Path, target: str) -> None:
    """In one line, with status 1; nothing is left behind."""
    done = gpudctl("import", "llama-swap", "config.yaml", "--output", target, where=old.parent)
    assert done.returncode == 1
    assert done.stderr.startswith(f'gpudctl: cannot write "{target}": ')
    assert [one.name for one in old.parent.iterdir()] == ["config.yaml"]


def test_standard_input_and_output(tmp_path: Path) -> None:
    """Both are a dash; relative paths start where gpudctl is run."""
    given = SWAP.replace("/m/a.gguf", "a.gguf")
    done = gpudctl("import", "llama-swap", "-", "--output", "-", where=tmp_path, given=given)
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["models"]["a"]["file"] == f"{tmp_path}/a.gguf"
    assert "  -:3:5: models.a.cmd -m → models.a.file: it was relative" in done.stderr
    moved = gpudctl("import", "llama-swap", "-", "--directory", "/srv/x", where=tmp_path, given=given)
    assert yaml.safe_load(moved.stdout)["models"]["a"]["file"] == "/srv/x/a.gguf"


UNREADABLE = [
    ("llama-swap", b"models: [1", "old:1:9: "),
    ("llama-swap", b"models:\n  a:\n    cmd: ${x}\n", "old:3:10: models.a.cmd: there is no macro x"),
    ("llama-swap", b"\xff", "old:1:1: is not UTF-8"),
    ("llama-swap", b"", "old: is empty"),
    ("llama-swap", b"- a\n", "old:1:1: holds a list; llama-swap's configuration is a map"),
    ("llama-cpp-server", b'{\n  "server": {},\n}', "old:2:15: a comma stands before"),
    ("nixos", b"{}", "old: has none of the options that gpud knows"),
    (
        "nixos",
        b'{"services.llamacpp": {}, "services": {"llamacpp": {"enable": true}, "llamacpp.enable": false}}',
        "old:1:",
    ),
    ("docker-env", b"A=1\n?\n", "old:2:1: is neither NAME=value nor a comment"),
    ("docker-env", b"a: {b: 1}", "old:1:1: has no services and no environment"),
    ("ollama", b"[Service]\nEnvironment=A\n", "old:2:1: Environment= has a word"),
]


@pytest.mark.parametrize(("kind", "content", "said"), UNREADABLE)
def test_what_cannot_be_read_is_said_with_its_place(
    inside: Inside, tmp_path: Path, kind: str, content: bytes, said: str
) -> None:
    """Status 1, one line with file, line and column, and no configuration."""
    (tmp_path / "old").write_bytes(content)
    done = inside("import", kind, "old")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gpudctl: {said}")
    assert done.stderr.count("\n") == 1


def test_large_files_and_devices_end(tmp_path: Path) -> None:
    """No more is read than a configuration can have."""
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    for file in ("large", "/dev/zero"):
        done = gpudctl("import", "llama-swap", file, where=tmp_path)
        assert done.returncode == 1
        assert "is larger than 1 MiB, the most that is read" in done.stderr
    done = gpudctl("import", "llama-swap", "/nowhere", where=tmp_path)
    assert done.stderr == 'gpudctl: cannot read "/nowhere": No such file or directory; name a file that exists\n'


USAGE = [
    (["llama-swap"], "llama-swap needs a FILE"),
    (["nonsense", "x"], "invalid choice"),
    (["llama-swap", "x", "--models", "y"], "--models does not apply to llama-swap"),
    (["nixos", "x", "--engine", "ollama"], "--engine does not apply to nixos"),
    (["llama-swap", "x", "--check", "--output", "y"], "--check writes nothing"),
    (["llama-swap", "x", "--force"], "--force is for --output"),
    (["docker-env", "config.yaml", "--map", "a=b"], '--map "a=b" is not INSIDE=OUTSIDE'),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_wrong_command_lines(inside: Inside, old: Path, words: list[str], said: str) -> None:
    """Status 2, and what is right."""
    assert old.exists()
    done = inside("import", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_nothing_of_the_input_is_run(tmp_path: Path) -> None:
    """Neither what a shell would run, nor the programs themselves."""
    (tmp_path / "llama-server").write_text("#!/bin/sh\ntouch ran\n")
    (tmp_path / "llama-server").chmod(0o755)
    cmd = "./llama-server --port ${PORT} -m $(touch ran) `touch ran` ; touch ran && touch ran"
    (tmp_path / "old.yaml").write_text(json.dumps({"models": {"a": {"cmd": cmd, "cmdStop": "touch ran"}}}))
    done = gpudctl("import", "llama-swap", "old.yaml", where=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert not (tmp_path / "ran").exists()


def test_variables_come_from_files_before_the_environment(tmp_path: Path) -> None:
    """And what is secret by its name is not shown, wherever it is used."""
    (tmp_path / "vars").write_text("DIR=/from/file\nMY_TOKEN=hunter22222\n")
    models = {
        "a": {"cmd": "llama-server --port ${PORT} -m ${env.DIR}/${env.NAME}.gguf --temp ${env.MY_TOKEN}"},
        "b": {"cmd": "serve --port ${PORT} --auth ${env.MY_TOKEN}"},
    }
    (tmp_path / "old.yaml").write_text(json.dumps({"models": models}))
    words = ("import", "llama-swap", "old.yaml", "--environment", "vars")
    for more in ((), ("--json",), ("--check",)):
        done = gpudctl(*words, *more, where=tmp_path, DIR="/from/environment", NAME="x")
        assert done.returncode == 0
        assert "hunter2" not in done.stdout + done.stderr
    config = yaml.safe_load(gpudctl(*words, where=tmp_path, DIR="/from/environment", NAME="x").stdout)
    assert config["models"]["a"]["file"] == "/from/file/x.gguf"
    assert config["models"]["b"]["command"] == ["serve", "--port", "${port}"]


def test_paths_of_a_container_are_mapped(tmp_path: Path) -> None:
    """The longest of several counts, and the model may be given a name."""
    (tmp_path / "env").write_text("MODEL_PATH=/data/m/a.gguf\nHF_HOME=/data/.hf\n")
    words = ("--map", "/data=/srv/data", "--map", "/data/m=/mnt/models", "--name", "mine")
    done = gpudctl("import", "docker-env", "env", *words, where=tmp_path)
    config = yaml.safe_load(done.stdout)
    assert config["models"]["mine"]["file"] == "/mnt/models/a.gguf"
    assert config["engines"]["llama_server"]["environment"]["HF_HOME"] == "/srv/data/.hf"
    assert "to be looked at" not in done.stderr


def test_options_may_be_a_part(tmp_path: Path) -> None:
    """With the option that they are the value of."""
    (tmp_path / "o.json").write_text('{"model": "/m/a.gguf", "n_ctx": 8192}')
    done = gpudctl("import", "nixos", "o.json", "--prefix", "services.llamacpp", where=tmp_path)
    model = yaml.safe_load(done.stdout)["models"]["a"]
    assert model == {
        "engine": "llama_server",
        "file": "/m/a.gguf",
        "context": 8192,
        "layers": 22,
        "threads": 6,
        "parallel": 1,
        "batch": 2048,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_golden_file_passes_the_check(inside: Inside, case: Case) -> None:
    """By the command that a person would use."""
    done = inside("config", "check", str(case.expected))
    assert done.returncode == 0, done.stdout


# Ollama's store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with three models: one whole, one without its weights, one that is no manifest; and a pipe as a blob."""
    folder = tmp_path / ".ollama" / "models"
    library = folder / "manifests" / "registry.ollama.ai" / "library"
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)

    def layer(kind: str, digest: str) -> dict[str, object]:
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": 1}

    def manifest(name: str, tag: str, text: str) -> None:
        (library / name).mkdir(parents=True, exist_ok=True)
        (library / name / tag).write_text(text)

    layers = [layer("model", DIGESTS[0]), layer("params", DIGESTS[1]), layer("license", DIGESTS[2])]
    manifest("llama3.2", "3b", json.dumps({"layers": layers}))
    manifest("gone", "latest", json.dumps({"layers": [layer("model", DIGESTS[5])]}))
    manifest("bad", "latest", '{"layers": [{"digest": "sha256:../../etc/passwd"}]}')
    manifest("piped", "1b", json.dumps({"layers": [layer("model", DIGESTS[0]), layer("params", DIGESTS[3])]}))
    (blobs / f"sha256-{DIGESTS[0]}").write_bytes(b"GGUF")
    (blobs / f"sha256-{DIGESTS[1]}").write_text('{"num_ctx": 8192, "stop": ["<|x|>"]}')
    os.mkfifo(blobs / f"sha256-{DIGESTS[3]}")
    return folder


def test_the_store_is_found_and_read(store: Path, tmp_path: Path) -> None:
    """A user's own, without a word on the command line; what is broken in it is said."""
    done = gpudctl("import", "ollama", where=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["models"] == {
        "llama3.2:3b": {"engine": "ollama", "context": 8192},
        "piped:1b": {"engine": "ollama"},
    }
    assert config["engines"]["ollama"]["models_dir"] == str(store)
    assert "gone:latest: its weights are missing: sha256-000000000000… in blobs" in done.stderr
    assert "bad:latest: its manifest cannot be read: it is not an Ollama manifest" in done.stderr


def test_another_engine_reads_the_files_of_the_store(store: Path, tmp_path: Path) -> None:
    """With what the variables of the service say for all."""
    (tmp_path / "environ").write_bytes(b"OLLAMA_KEEP_ALIVE=-1\0OLLAMA_FLASH_ATTENTION=true\0HOME=/x\0")
    words = ("import", "ollama", "environ", "--models", store, "--engine", "llama_server")
    config = yaml.safe_load(gpudctl(*words, where=tmp_path).stdout)
    assert config["models"]["llama3.2:3b"] == {
        "engine": "llama_server",
        "file": f"{store}/blobs/sha256-{DIGESTS[0]}",
        "context": 8192,
    }
    assert config["engines"]["llama_server"]["defaults"] == {"idle_timeout": "never", "flash_attention": "on"}


def test_no_store_is_said(tmp_path: Path) -> None:
    """One that was named and is none; and none at all."""
    done = gpudctl("import", "ollama", "--models", "/nowhere", where=tmp_path)
    assert done.returncode == 1
    assert 'cannot import from "/nowhere": it has no folder "manifests"' in done.stderr


def test_the_units_of_the_golden_files_have_no_secret_for_the_terminal(inside: Inside) -> None:
    """Nor for programs."""
    for more in ((), ("--json",), ("--check",)):
        done = inside("import", "ollama", str(GOLDEN / "ollama.conf"), *more)
        assert done.returncode == 0
        assert not any(word in done.stdout + done.stderr for word in SECRETS)
