"""``gpudctl storage``: the folders are made, shown, measured and cleaned, and nothing else is ever touched."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_place import GPUDCTL, PATIENCE_S

from gpud.cli.storing.tree import TREE

TOP = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def gpudctl(home: Path, *words: str, status: int = 0, told: str | None = None) -> tuple[str, str]:
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*GPUDCTL, "storage", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        input=told,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A whole place for models."""
    base = tmp_path / "store"
    gpudctl(tmp_path, "init", "--base", str(base))
    return base


def put(path: Path, size: int = 4096, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content * size)
    return path


def test_the_folders_are_made_once(tmp_path: Path) -> None:
    """Below a root, with their modes; another time nothing changes, and what is otherwise is mended and told."""
    root = tmp_path / "image"
    first, _ = gpudctl(tmp_path, "init", "--root", str(root))
    base = root / "var/lib/ml-models"
    assert first.splitlines() == [f"created {base / folder.path}" for folder in TREE]
    for folder in TREE:
        assert stat.S_IMODE((base / folder.path).stat().st_mode) == folder.mode
    assert gpudctl(tmp_path, "init", "--root", str(root))[0] == "unchanged\n"
    put(base / "gguf/model.gguf")
    (base / "gguf").chmod(0o700)
    (base / "tgi").chmod(0o2775)
    assert gpudctl(tmp_path, "init", "--root", str(root))[0] == f"changed {base}/gguf: mode 0700 to 0775\n"
    assert (base / "gguf/model.gguf").exists() and stat.S_IMODE((base / "tgi").stat().st_mode) == 0o2775


def test_the_folders_are_those_of_the_system(tmp_path: Path) -> None:
    """What systemd makes at a boot is what the command makes: the same paths, modes and owners."""
    lines = (TOP / "units/gpud.tmpfiles").read_text().splitlines()
    told = [line.split()[1:5] for line in lines if line.startswith("d ")]
    ours = [[f"/var/lib/ml-models/{one.path}".rstrip("/"), f"{one.mode:04o}", one.owner, one.owner] for one in TREE]
    assert told == ours


def test_a_place_that_is_a_link_is_looked_after_where_it_leads(tmp_path: Path) -> None:
    """Models on another disk: the link stays a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    gpudctl(tmp_path, "init", "--base", str(tmp_path / "store"))
    assert (tmp_path / "store").is_symlink() and (tmp_path / "disk/cache").is_dir()


def test_a_place_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    """A file in the way, for root as for anybody."""
    put(tmp_path / "file")
    _, told = gpudctl(tmp_path, "init", "--base", str(tmp_path / "file/store"), status=1)
    assert told.startswith(f"gpudctl: cannot create {tmp_path}/file/store: Not a directory; run it with sudo")


def test_what_is_there_is_shown_two_folders_deep(tmp_path: Path, store: Path) -> None:
    """With sizes, links as links, names in any bytes; an empty place is shown, too."""
    assert "cache/" in gpudctl(tmp_path, "ls", "--base", str(store))[0]
    put(store / "gguf/big.gguf", 3 * MIB)
    put(store / "gguf/deep/deeper/model.gguf", MIB)
    (store / "gguf/link").symlink_to("/etc/passwd")
    put(Path(os.fsdecode(os.fsencode(store) + b"/gguf/\xff\n.gguf")))
    listed, _ = gpudctl(tmp_path, "ls", "--base", str(store))
    assert re.search(r"^ +3 MiB  │   ├── big\.gguf$", listed, re.M)
    assert "deep/" in listed and "deeper" not in listed
    assert "link -> /etc/passwd" in listed and "\\xff?.gguf" in listed
    assert "deeper/" in gpudctl(tmp_path, "ls", "--base", str(store), "--depth", "3")[0]
    data = json.loads(gpudctl(tmp_path, "ls", "--base", str(store), "--json")[0])
    assert {one["name"] for one in data["inside"]} == {one.path for one in TREE if one.path and "/" not in one.path}


def test_sizes_are_those_of_du(tmp_path: Path, store: Path) -> None:
    """Each folder's, and the sum: hard links count once, links nothing."""
    first = put(store / "gguf/one.gguf", 2 * MIB)
    (store / "gguf/two.gguf").hardlink_to(first)
    (store / "vllm/link").symlink_to(first)
    with (store / "gguf/sparse.gguf").open("wb") as file:
        file.truncate(1 << 30)
    data = json.loads(gpudctl(tmp_path, "du", "--base", str(store), "--json")[0])
    done = subprocess.run(["du", "-sB1", str(store)], capture_output=True, text=True, check=True)
    assert data["bytes"] == int(done.stdout.split()[0])
    assert {one["path"] for one in data["each"]} == {str(one) for one in store.iterdir()}


def test_copies_are_found_by_their_content_and_made_one_file(tmp_path: Path, store: Path) -> None:
    """Also in a store whose names are digests; what is linked already costs nothing; small files do not matter."""
    one = put(store / "gguf/one.gguf", MIB, b"ab")
    put(store / "custom/two.gguf", MIB, b"ab")
    put(store / "custom/other.gguf", MIB, b"ac")
    put(store / "gguf/small.txt", 10)
    put(store / "custom/small.txt", 10)
    (store / "gguf/linked.gguf").hardlink_to(one)
    data = json.loads(gpudctl(tmp_path, "du", "--duplicates", "--base", str(store), "--json")[0])
    (group,) = data["duplicates"]
    assert data["wasted_bytes"] == 2 * MIB and group["size_bytes"] == 2 * MIB and len(group["files"]) == 3
    printed, advice = gpudctl(tmp_path, "du", "--duplicates", "--base", str(store))
    assert "2 copies of 2 MiB:" in printed and "--link makes them one file" in advice
    _, refused = gpudctl(tmp_path, "du", "--duplicates", "--link", "--base", str(store), status=2, told="")
    assert "give --yes to skip the question" in refused
    with (store / "custom/two.gguf").open("rb") as reader:
        assert "linked " in gpudctl(tmp_path, "du", "--duplicates", "--link", "--yes", "--base", str(store))[0]
        assert reader.read() == b"ab" * MIB
    assert (store / "custom/two.gguf").samefile(one) and (store / "gguf/linked.gguf").samefile(one)
    said = gpudctl(tmp_path, "du", "--duplicates", "--base", str(store))[0]
    assert said == "no file of 1 MiB or more exists twice\n"


def test_copies_of_other_rights_stay_what_they_are(tmp_path: Path, store: Path) -> None:
    """As one file they would have one owner and one mode: nobody is locked out of a model, or let in to one."""
    private, public = put(store / "custom/a.gguf", MIB, b"ab"), put(store / "gguf/b.gguf", MIB, b"ab")
    private.chmod(0o600)
    public.chmod(0o644)
    words = ("du", "--duplicates", "--link", "--yes", "--base", str(store))
    _, said = gpudctl(tmp_path, *words, status=1)
    assert "has another owner or other rights than" in said
    assert not private.samefile(public) and stat.S_IMODE(public.stat().st_mode) == 0o644
    private.chmod(0o644)
    gpudctl(tmp_path, *words)
    assert private.samefile(public)


def test_only_the_cache_is_cleaned(tmp_path: Path, store: Path) -> None:
    """Links go and what they lead to stays; files that somebody has open stay; folders go with what was in them."""
    outside = put(tmp_path / "outside/precious", 8192)
    put(store / "gguf/model.gguf")
    put(store / "cache/a/b/old", 8192)
    (store / "cache/link").symlink_to(outside)
    (store / "cache/folder").symlink_to(outside.parent)
    used = put(store / "cache/a/used", 8192)
    printed, _ = gpudctl(tmp_path, "clean-cache", "--dry-run", "--base", str(store))
    assert printed.startswith(f"would remove 4 files below {store}/cache: ") and used.exists()
    _, refused = gpudctl(tmp_path, "clean-cache", "--base", str(store), status=2, told="")
    assert "give --yes to skip the question" in refused and (store / "cache/a/b/old").exists()
    with used.open("rb"):
        printed, told = gpudctl(tmp_path, "clean-cache", "--yes", "--base", str(store), "--json")
    data = json.loads(printed)
    assert data["removed"] == 3 and data["freed_bytes"] >= 8192
    assert data["kept"] == [{"path": str(used), "why": "is in use"}] and f"kept {used}: it is in use" in told
    assert sorted(path.name for path in (store / "cache").rglob("*")) == ["a", "used"]
    assert outside.exists() and (store / "gguf/model.gguf").exists()


def test_a_cache_that_is_a_link_is_not_cleaned(tmp_path: Path, store: Path) -> None:
    """Whoever put it there may have meant something else."""
    outside = put(tmp_path / "outside/precious")
    (store / "cache").rmdir()
    (store / "cache").symlink_to(outside.parent)
    _, told = gpudctl(tmp_path, "clean-cache", "--yes", "--base", str(store), status=1)
    assert f"cannot clean {store}/cache" in told and outside.exists()


def test_a_file_with_another_link_frees_nothing(tmp_path: Path, store: Path) -> None:
    """Its bytes are still there under the other name."""
    kept = put(store / "gguf/model.gguf", MIB)
    (store / "cache/model").hardlink_to(kept)
    data = json.loads(gpudctl(tmp_path, "clean-cache", "--yes", "--base", str(store), "--json")[0])
    assert (data["removed"], data["freed_bytes"]) == (1, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_another_disk_in_the_cache_is_left_alone(tmp_path: Path, store: Path) -> None:
    """Somebody mounted it there for a while."""
    place = store / "cache/mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    try:
        put(place / "precious")
        _, told = gpudctl(tmp_path, "clean-cache", "--yes", "--base", str(store))
        assert f"kept {place}: it is on another disk" in told and (place / "precious").exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_little_room_is_warned_of(tmp_path: Path, store: Path) -> None:
    """With the number and what to do; it fails where that is wished, as the timer's unit wishes it. In the journal it
    is a warning.
    """
    printed, _ = gpudctl(tmp_path, "check", "--least", "1B", "--base", str(store))
    assert re.fullmatch(r"\S+ \S+ of \S+ \S+ free for models in .*\n", printed)
    printed, _ = gpudctl(tmp_path, "check", "--least", "4000000T", "--base", str(store))
    first, second = printed.splitlines()
    assert re.fullmatch(r"WARNING: ML models storage low: \d+GB remaining", first)
    assert "less than" in second and '"gpudctl storage du"' in second
    assert gpudctl(tmp_path, "check", "--fail", "--least", "1B", "--base", str(store))[0].count("\n") == 1
    failed, _ = gpudctl(tmp_path, "check", "--fail", "--least", "4000000T", "--base", str(store), status=1)
    assert failed.splitlines()[0] == first
    data = json.loads(gpudctl(tmp_path, "check", "--least", "4000000T", "--base", str(store), "--json")[0])
    disk = os.statvfs(store)
    assert data["low"] is True and data["total_bytes"] == disk.f_blocks * disk.f_frsize


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (("du", "--link"), 2, "--link needs --duplicates"),
        (("ls", "--duplicates"), 2, "--duplicates belongs to du"),
        (("ls", "--depth", "0"), 2, "--depth"),
        (("check", "--least", "much"), 2, "--least"),
        (("tidy",), 2, "tidy"),
        ((), 2, "ACTION"),
    ],
)
def test_bad_words_are_told(tmp_path: Path, store: Path, words: tuple[str, ...], status: int, problem: str) -> None:
    """And change nothing."""
    _, told = gpudctl(tmp_path, *words, "--base", str(store), status=status)
    assert problem in told


@pytest.mark.parametrize(
    "line",
    [
        "storage init --base=",
        "storage init --root=",
        "pull hf:a/b --to=",
        "fetch https://localhost/a.gguf --to=",
        "import ollama --models=",
        "import llama-swap x --directory=",
        "import llama-swap x --output=",
    ],
)
def test_an_empty_name_is_no_place(tmp_path: Path, line: str) -> None:
    """A script whose variable is not set must not make, fill or read another place than it meant."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*GPUDCTL, *line.split()], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2 and "it is empty; a folder or a file is expected" in done.stderr
    assert not done.stdout and not list(tmp_path.iterdir())


def test_a_place_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    """Each action but init needs one."""
    for action in ("ls", "du", "clean-cache", "check"):
        _, told = gpudctl(tmp_path, action, "--base", str(tmp_path / "nowhere"), status=1)
        assert told.startswith(
            f'gpudctl: there is no folder {tmp_path}/nowhere; "sudo gpudctl storage init" creates it'
        )


def test_the_configured_place_is_taken(tmp_path: Path) -> None:
    """``storage.base_directory`` of whichever gpud is meant."""
    (tmp_path / "gpud").mkdir()
    (tmp_path / "gpud/gpud.yaml").write_text(f"storage: {{base_directory: {tmp_path}/mine}}\n")
    gpudctl(tmp_path, "init", "--user")
    assert (tmp_path / "mine/gguf").is_dir()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh"])
def test_shells_are_told_where_models_are(tmp_path: Path, shell: str) -> None:
    """Twice is as good as once; what is set stays; who may not write to the store keeps their own places."""
    names = (
        "ML_MODELS_BASE LLAMACPP_MODELS_PATH OLLAMA_MODELS_PATH HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE OLLAMA_MODELS"
    )
    file = TOP / "config/profile.d/gpud.sh"

    def told(**given: str) -> dict[str, str]:
        done = subprocess.run(
            [shell, "-euc", f". {file}; . {file}; env"],
            env={"PATH": os.environ["PATH"], **given},
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return {name: found[name] for name in names.split() if name in found}

    base = tmp_path / "store"
    assert told(ML_MODELS_BASE=str(base)) == {
        "ML_MODELS_BASE": f"{base}",
        "LLAMACPP_MODELS_PATH": f"{base}/llamacpp",
        "OLLAMA_MODELS_PATH": f"{base}/ollama/models",
        "HF_HOME": f"{base}/huggingface",
        "HF_HUB_CACHE": f"{base}/huggingface/hub",
        "HF_DATASETS_CACHE": f"{base}/huggingface/datasets",
        "OLLAMA_MODELS": f"{base}/ollama/models",
    }
    assert told(HF_HOME="/mine")["HF_HUB_CACHE"] == "/mine/hub"
    assert set(told()) == set(names.split())


@pytest.mark.parametrize("name", ["ml-ls", "ml-du", "ml-clean-cache"])
def test_the_old_commands_are_there(tmp_path: Path, store: Path, name: str) -> None:
    """They are what gpudctl has for it, with its options."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "gpudctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m gpud.cli "$@"\n')
    (place / "gpudctl").chmod(0o755)
    done = subprocess.run(
        [str(TOP / "shell/bin" / name), "--base", str(store), "--json"],
        env={"PATH": f"{place}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_of_a_users_own_gpud_the_users_places_are_looked_into(tmp_path: Path) -> None:
    """Models, the hub's cache, Ollama's store, as far as they are there, beside the place of the machine; a file that
    is in several counts once, and one place in another is looked at once. A named place is looked at alone.
    """
    base, models, store = tmp_path / "base", tmp_path / ".local/share/gpud/models", tmp_path / ".ollama/models"
    put(tmp_path / "gpud/gpud.yaml", 1, f"storage: {{base_directory: {base}}}\n".encode())
    _, told = gpudctl(tmp_path, "ls", "--user", status=1)
    assert told.startswith(f"gpudctl: there is no folder {base}; ")
    first = put(models / "one.gguf", 2 * MIB)
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / "sha256-1").hardlink_to(first)
    put(tmp_path / ".cache/huggingface/hub/models--a--b/blobs/x", 2 * MIB)
    listed = gpudctl(tmp_path, "ls", "--user")[0]
    assert all(str(place) in listed for place in (models, store, tmp_path / ".cache/huggingface/hub"))
    used = json.loads(gpudctl(tmp_path, "du", "--user", "--json")[0])
    assert used["files"] == 2 and 4 * MIB <= used["bytes"] < 5 * MIB
    assert [one["path"] for one in used["each"]] == [str(models), f"{tmp_path}/.cache/huggingface/hub", str(store)]
    assert "2 copies of 2 MiB" in gpudctl(tmp_path, "du", "--user", "--duplicates")[0]
    assert str(models) in gpudctl(tmp_path, "check", "--user", "--least", "1B")[0]
    put(base / "gguf/other.gguf", 2 * MIB, b"y")
    (base / "gguf/mine").symlink_to(models)
    both = json.loads(gpudctl(tmp_path, "ls", "--user", "--json")[0])
    assert both["path"] == str(base) and both["also"][0]["path"] == str(models)
    printed = gpudctl(tmp_path, "du", "--user")[0]
    assert f" {base}/gguf\n" in printed and printed.endswith(" in all, 4 files\n")
    assert str(models) not in gpudctl(tmp_path, "du", "--user", "--base", str(base))[0]
    assert str(models) not in gpudctl(tmp_path, "du", "--system", "--base", str(base))[0]
    (tmp_path / "base2").symlink_to(tmp_path / ".local")
    put(tmp_path / "gpud/gpud.yaml", 1, f"storage: {{base_directory: {tmp_path}/base2}}\n".encode())
    inside = json.loads(gpudctl(tmp_path, "ls", "--user", "--json")[0])
    assert str(models) not in [one["path"] for one in inside["also"]]
