"""The hub's own library against a hub that is as it should be, and one that is not.

The library knows where the hub is from when it is loaded: each question is asked by the process that gpudctl starts.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpud.pulling.hub import how_to_install

from .hub_server import COMMIT, Fault, Hub

TOP = Path(__file__).resolve().parents[2]
BOUND_S = 60
REPO = "org/repo"


class Asked:
    """The process that gpudctl starts, asked from its first question to its last."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        variables = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": hub.url, "LANG": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpud.pulling"],
            env=variables | environment,
            cwd=TOP,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, wish: dict[str, Any]) -> list[dict[str, Any]]:
        """All that is told of one wish."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        events: list[dict[str, Any]] = []
        for line in self._process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] in ("finished", "failed"):
                break
        return events

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(BOUND_S)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Asked, Path]]:
    """Loading the library takes longer than most questions: one process answers those of a module."""
    home = tmp_path_factory.mktemp("home")
    with Hub() as hub, Asked(hub, home) as asked:
        yield hub, asked, home


@pytest.fixture
def hub(shared: tuple[Hub, Asked, Path]) -> Hub:
    shared[0].reset()
    return shared[0]


@pytest.fixture
def home(shared: tuple[Hub, Asked, Path]) -> Iterator[Path]:
    yield shared[2]
    shutil.rmtree(shared[2] / ".cache", ignore_errors=True)


@pytest.fixture
def ask(shared: tuple[Hub, Asked, Path], home: Path) -> Any:
    """One question; with an environment of its own it has a process of its own."""

    def question(wish: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        if not environment:
            return shared[1].ask(wish)
        with Asked(shared[0], home, **environment) as asked:
            return asked.ask(wish)

    return question


def listing_of(repo: str = REPO, wanted: str = "", revision: str = "main") -> dict[str, Any]:
    return {"do": "list", "repo": repo, "revision": revision, "wanted": wanted}


def test_a_repository_is_listed_with_sizes_and_checksums(hub: Hub, ask: Any) -> None:
    """One question, and everything that a download needs."""
    entry = hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF" * 100)
    hub.add(REPO, "m-Q8_0.gguf", b"GGUF" * 200)
    hub.add(REPO, "README.md", b"hello", lfs=False)
    last = ask(listing_of(wanted="q4_k_m"))[-1]
    assert last["event"] == "finished"
    assert last["listing"]["commit"] == COMMIT
    assert [choice["label"] for choice in last["listing"]["choices"]] == ["Q4_K_M", "Q8_0"]
    (meant,) = last["meant"]
    file = {"path": "m-Q4_K_M.gguf", "size_bytes": 400, "checksum_kind": "sha256", "checksum": entry.sha256}
    assert meant["files"] == [file]
    assert [seen.path for seen in hub.seen] == [f"/api/models/{REPO}/revision/main"]


def test_the_token_of_the_environment_is_shown(hub: Hub, ask: Any) -> None:
    """As the library has it; it is in nothing that comes back."""
    hub.token = "hf_secret"
    hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF")
    assert ask(listing_of())[-1]["code"] in ("access-denied", "download-failed")
    events = ask(listing_of(), HF_TOKEN="hf_secret")
    assert events[-1]["event"] == "finished"
    assert "hf_secret" not in json.dumps(events)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../../etc/cron.d/x.gguf", "leads elsewhere"),
        ("/etc/cron.d/x.gguf", "no file may be called so"),
        ("a\\b.gguf", "no file may be called so"),
        ("a\0.gguf", "no file may be called so"),
        ("x" * 300 + ".gguf", "has 305 bytes"),
    ],
)
def test_a_repository_with_a_hostile_name_is_refused(hub: Hub, ask: Any, path: str, says: str) -> None:
    """As a whole: nobody knows what else is in it."""
    hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF")
    hub.extra_siblings = [{"rfilename": path, "size": 4, "lfs": {"size": 4, "sha256": "0" * 64, "pointerSize": 1}}]
    last = ask(listing_of())[-1]
    assert last["event"] == "failed"
    assert says in last["message"]


@pytest.mark.parametrize(
    ("sibling", "says"),
    [
        ({"rfilename": "m.gguf"}, "does not say how long"),
        ({"rfilename": "m.gguf", "size": -5, "blobId": "0" * 40}, "does not say how long"),
        ({"rfilename": "m.gguf", "size": "12", "blobId": "0" * 40}, "does not say how long"),
        ({"rfilename": "m.gguf", "size": 5}, "has no checksum"),
        ({"rfilename": "m.gguf", "size": 5, "blobId": "../../x"}, "has no checksum"),
        ({"rfilename": "m.gguf", "size": 5, "lfs": {"size": 5, "sha256": "x", "pointerSize": 1}}, "has no checksum"),
        ({"size": 5}, "cannot understand"),
    ],
)
def test_what_a_download_needs_must_be_there(hub: Hub, ask: Any, sibling: dict[str, Any], says: str) -> None:
    """A size and a checksum of each file, or nothing is downloaded."""
    hub.add(REPO, "README.md", b"x", lfs=False)
    hub.extra_siblings = [sibling]
    last = ask(listing_of())[-1]
    assert last["event"] == "failed"
    assert says in last["message"]


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), "download-failed", "has no repository"),
        (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), "download-failed", 'no revision "main"'),
        (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), "access-denied", "accepted its conditions"),
        (Fault(status=403), "access-denied", "answers 403"),
        (Fault(status=400), "download-failed", "answers 400"),
        (Fault(body=lambda _: b"<html>"), "download-failed", "cannot understand"),
        (Fault(body=lambda _: b"[1]"), "download-failed", "cannot understand"),
        (Fault(body=lambda _: b"{}"), "download-failed", ""),
    ],
)
def test_what_the_hub_says_no_with(hub: Hub, ask: Any, fault: Fault, code: str, says: str) -> None:
    """Each has a sentence of its own, and what to do."""
    hub.add(REPO, "m.gguf", b"GGUF")
    hub.api_faults = [fault]
    last = ask(listing_of())[-1]
    assert (last["event"], last["code"]) == ("failed", code)
    assert says in last["message"]


def test_a_hub_that_is_overloaded_is_asked_again(hub: Hub, ask: Any) -> None:
    """After as long as it wants."""
    hub.add(REPO, "m.gguf", b"GGUF")
    hub.api_faults = [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=503)]
    events = ask(listing_of())
    assert events[-1]["event"] == "finished"
    assert [event["why"] for event in events[:-1]] == [f"{hub.url} answers 429", f"{hub.url} answers 503"]


def test_a_hub_that_is_not_there(hub: Hub, ask: Any) -> None:
    """After some tries, with its address."""
    last = ask(listing_of(), HF_ENDPOINT="http://127.0.0.1:9")[-1]
    assert last["event"] == "failed"
    assert "http://127.0.0.1:9 cannot be reached" in last["message"]


@pytest.mark.parametrize("repo", ["a", "a/b/c", "../..", "a b/c", "org/re--po.git"])
def test_what_is_no_repository_is_refused(hub: Hub, ask: Any, repo: str) -> None:
    """By the library's own rules or by the hub; nothing else is asked for."""
    assert ask(listing_of(repo))[-1]["event"] == "failed"


# Whole repositories --------------------------------------------------------------------------------------------------


def snapshot(listing: dict[str, Any], folder: Path | str = "") -> dict[str, Any]:
    about = {key: listing[key] for key in ("repo", "revision", "commit")}
    return {"do": "snapshot", "files": listing["safetensors"], "folder": str(folder), **about}


def with_safetensors(hub: Hub) -> dict[str, bytes]:
    content = {
        "config.json": b'{"architectures": []}',
        "model.safetensors": os.urandom(300_000),
        "tokenizer [1].json": b"{}",
    }
    for path, data in content.items():
        hub.add(REPO, path, data, lfs=path.endswith(".safetensors"))
    hub.add(REPO, "pytorch_model.bin", b"x" * 1000)
    return content


def test_a_whole_repository_is_laid_out_as_the_library_does(hub: Hub, ask: Any, home: Path) -> None:
    """Its cache has the version with links to each content, by the library's own hand; each content came once."""
    content = with_safetensors(hub)
    listing = ask(listing_of())[-1]["listing"]
    hub.seen.clear()
    last = ask(snapshot(listing))[-1]
    folder = home / ".cache" / "huggingface" / "hub" / "models--org--repo" / "snapshots" / COMMIT
    assert last == {"event": "finished", "path": str(folder)}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert all(path.is_symlink() for path in folder.iterdir())
    assert (folder.parents[1] / "refs" / "main").read_text() == COMMIT
    fetched = [seen.path for seen in hub.seen if "/resolve/" in seen.path and seen.method == "GET"]
    assert sorted(fetched) == sorted(f"/{REPO}/resolve/{COMMIT}/{path}" for path in content)


def test_the_library_finds_what_was_laid_out(hub: Hub, ask: Any, home: Path) -> None:
    """An engine that asks it for the repository gets it without the network."""
    with_safetensors(hub)
    path = ask(snapshot(ask(listing_of())[-1]["listing"]))[-1]["path"]
    program = "import huggingface_hub as h; print(h.snapshot_download('org/repo', allow_patterns=['*.json', 'model*']))"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == path


def test_a_whole_repository_goes_on_where_it_broke_off(hub: Hub, ask: Any, tmp_path: Path) -> None:
    """In a cache that was named; what is whole already does not come again."""
    content = with_safetensors(hub)
    listing = ask(listing_of())[-1]["listing"]
    hub.faults["model.safetensors"] = [Fault(after=100_000), *(Fault(status=404) for _ in range(1))]
    cache = tmp_path / "cache"
    assert ask(snapshot(listing, cache))[-1]["event"] == "failed"
    last = ask(snapshot(listing, cache))[-1]
    assert {path.name: path.read_bytes() for path in Path(last["path"]).iterdir()} == content
    ranges = [seen.headers.get("Range") for seen in hub.asked("model.safetensors")]
    assert ranges == [None, "bytes=100000-", "bytes=100000-"]
    assert len(hub.asked("config.json")) == 1


def test_a_small_file_with_the_wrong_content_is_found_out(hub: Hub, ask: Any, tmp_path: Path) -> None:
    """Git's name for it is its checksum."""
    with_safetensors(hub)
    listing = ask(listing_of())[-1]["listing"]
    hub.faults["config.json"] = [Fault(body=lambda data: data[::-1]) for _ in range(2)]
    last = ask(snapshot(listing, tmp_path / "cache"))[-1]
    assert (last["event"], last["code"]) == ("failed", "wrong-checksum")


def test_without_the_library_it_says_how_to_get_it(hub: Hub, ask: Any, tmp_path: Path) -> None:
    """By the Python that this runs with, which need not be the one that is found in PATH."""
    broken = tmp_path / "broken" / "huggingface_hub"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('not here')")
    last = ask(listing_of(), PYTHONPATH=str(broken.parent))[-1]
    assert last["code"] == "no-huggingface-hub"
    assert f'{sys.executable} -m pip install "huggingface_hub>=1"' in last["hint"]


def test_into_the_python_of_the_system_root_installs() -> None:
    """As `make install` and the Debian package have made it."""
    assert how_to_install("/opt/gpud/bin/python", False).startswith("sudo /opt/gpud/bin/python -m pip install ")
