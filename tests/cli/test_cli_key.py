"""``gpudctl key``: keys are made, listed and revoked without a daemon, and seen once."""

import json
import multiprocessing
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cli_place import GPUDCTL, PATIENCE_S

from gpud.cli.keys_file import change, service_group
from gpud.config import load_keys
from gpud.config.api_keys import digest_of
from gpud.core.errors import ConfigInvalid, GpudError
from gpud.core.facts import Priority
from gpud.core.keys import ApiKey, Rate, Right
from gpud.http.keys import Keys


def gpudctl(home: Path, *words: str, status: int = 0) -> tuple[str, str]:
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*GPUDCTL, *words], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    """It is printed once and alone; what is in the file lets it in; revoked, it is gone."""
    file = tmp_path / "keys.yaml"
    words = ["--allow", "tiny", "--allow", "qwen*", "--rate", "60/min", "--priority", "high", "--may", "manage"]
    printed, note = gpudctl(tmp_path, "key", "add", "laptop", "--file", str(file), *words)
    key = printed.removesuffix("\n")
    assert key.startswith("gpud_") and "\n" not in key
    assert key not in note and "gpudctl reload" in note
    assert key not in file.read_text()
    (entry,) = load_keys(file)
    assert entry == ApiKey(
        "laptop", digest_of(key), ("tiny", "qwen*"), Rate(60, 60.0), Priority.HIGH, frozenset({Right.MANAGE})
    )
    assert Keys([entry]).find(key) == entry
    second, _ = gpudctl(tmp_path, "key", "add", "phone", "--file", str(file))
    listed, _ = gpudctl(tmp_path, "key", "list", "--file", str(file))
    assert [row.split() for row in listed.splitlines()] == [
        ["NAME", "MODELS", "RATE", "PRIORITY", "MAY"],
        ["laptop", "tiny", "qwen*", "60/min", "high", "manage"],
        ["phone", "*", "use"],
    ]
    assert entry.digest.hex() not in listed
    _, note = gpudctl(tmp_path, "key", "revoke", "laptop", "--file", str(file))
    assert 'until "gpudctl reload" it stays valid' in note
    keys = Keys(load_keys(file))
    assert keys.find(key) is None
    assert keys.find(second.strip()) is not None


def test_programs_get_objects(tmp_path: Path) -> None:
    """Each action has one."""
    file = str(tmp_path / "k")
    added = json.loads(gpudctl(tmp_path, "key", "add", "a", "--file", file, "--json")[0])
    assert (added["name"], added["file"], load_keys(Path(file))[0].digest) == ("a", file, digest_of(added["key"]))
    listed = json.loads(gpudctl(tmp_path, "key", "list", "--file", file, "--json")[0])
    a = {"name": "a", "allow": ["*"], "rate": None, "priority": None, "may": ["use"]}
    assert listed == {"file": file, "keys": [a]}
    revoked = json.loads(gpudctl(tmp_path, "key", "revoke", "a", "--file", file, "--json")[0])
    assert revoked == {"name": "a", "revoked": True, "file": file}


def test_the_file_is_that_of_the_configuration(tmp_path: Path) -> None:
    """And where none is configured, it says so."""
    (tmp_path / "gpud").mkdir()
    config = tmp_path / "gpud" / "gpud.yaml"
    config.write_text("http: {heartbeat: 5}\n")
    _, said = gpudctl(tmp_path, "--user", "key", "list", status=2)
    assert said.startswith("gpudctl: no file of API keys is configured; set http.api_keys_file")
    config.write_text("http: {api_keys_file: keys.yaml, front: {host: 0.0.0.0}}\n")
    gpudctl(tmp_path, "--user", "key", "add", "laptop")
    assert [key.name for key in load_keys(tmp_path / "gpud" / "keys.yaml")] == ["laptop"]
    said, _ = gpudctl(tmp_path, "--user", "config", "check")
    assert "OK" in said


def test_a_broken_file_of_keys_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    """gpud would not take it, so the check before a reload fails."""
    config, file = tmp_path / "gpud.yaml", tmp_path / "keys.yaml"
    config.write_text("http: {api_keys_file: keys.yaml}\n")
    said, _ = gpudctl(tmp_path, "config", "check", str(config), status=1)
    assert f"{file}: does not exist; gpudctl key add NAME makes it" in said
    file.write_text("a: {hash: x}")
    file.chmod(0o600)
    said, _ = gpudctl(tmp_path, "config", "check", str(config), status=1)
    assert f"{file}:1: a.hash: is not sha256:" in said


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("add",), 2, "key: add needs the name of the key"),
        (("revoke",), 2, "key: revoke needs the name of the key"),
        (("list", "a"), 2, "key: list takes no name"),
        (("list", "--rate", "5/s"), 2, "key: list takes neither --allow, --rate"),
        (("add", "A B"), 2, '"A B" is not allowed as the name of a key (at most 64 of a-z'),
        (("add", "gpud_x"), 2, "is not allowed as the name of a key"),
        (("add", "b", "--allow", "*x"), 2, '--allow "*x" is neither the name of a model'),
        (("add", "b", "--rate", "60"), 2, '"60" is not a rate; allowed: requests in a time, like 60/min'),
        (("add", "b", "--may", "all"), 2, "invalid choice"),
        (("add", "a"), 2, 'there is a key "a" in'),
        (("revoke", "b"), 2, 'there is no key "b" in'),
    ],
)
def test_mistakes_change_nothing(tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    """Each is told of in one line."""
    file = tmp_path / "k"
    gpudctl(tmp_path, "key", "add", "a", "--file", str(file))
    before = file.read_bytes()
    printed, told = gpudctl(tmp_path, "key", *words, "--file", str(file), status=status)
    assert printed == ""
    assert said in told
    assert told.count("\n") == 1
    assert file.read_bytes() == before


# The file ------------------------------------------------------------------------------------------------------------


def key(name: str) -> ApiKey:
    return ApiKey(name, digest_of(name))


def add(path: Path, name: str, group: int | None = None) -> None:
    change(path, lambda keys: (*keys, key(name)), group=lambda: group)


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Or for a group to read, where root makes it for gpud."""
    add(tmp_path / "mine", "a")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    add(tmp_path / "gpuds", "a", group=os.getegid())
    assert stat.S_IMODE((tmp_path / "gpuds").stat().st_mode) == 0o640
    assert service_group() is None or os.geteuid() == 0


def test_a_file_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    """Also behind a link, which stays one."""
    file = tmp_path / "real"
    add(file, "a")
    file.chmod(0o400)
    owner = (1, 1) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    link = tmp_path / "link"
    link.symlink_to(file)
    add(link, "b", group=12345)
    assert link.is_symlink()
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o400)
    assert [one.name for one in load_keys(file)] == ["a", "b"]


def test_a_failed_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """And nothing beside it."""
    file = tmp_path / "k"
    add(file, "a")
    before = file.read_bytes()

    def fail(_: object) -> tuple[ApiKey, ...]:
        raise GpudError("no")

    with pytest.raises(GpudError, match="no"):
        change(file, fail)
    with pytest.raises(GpudError, match=r'cannot change ".*/none/k": No such file'):
        add(tmp_path / "none" / "k", "a")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["k"]


def test_a_file_that_is_open_or_broken_is_not_written(tmp_path: Path) -> None:
    """It is for a person to mend."""
    file = tmp_path / "k"
    add(file, "a")
    file.chmod(0o644)
    with pytest.raises(ConfigInvalid, match="chmod 600"):
        add(file, "b")
    file.chmod(0o600)
    file.write_text("a: {hash: x}")
    with pytest.raises(ConfigInvalid, match=r"a\.hash"):
        add(file, "b")
    assert file.read_text() == "a: {hash: x}"


def test_two_changes_at_the_same_time_are_both_made(tmp_path: Path) -> None:
    """One waits for the other."""
    file = tmp_path / "k"
    makers = [multiprocessing.get_context("fork").Process(target=add, args=(file, f"k{number}")) for number in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(PATIENCE_S)
        maker.close()
    assert sorted(one.name for one in load_keys(file)) == [f"k{number}" for number in range(8)]
