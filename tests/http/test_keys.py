"""API keys: whose a key is, what shows none, and that what is secret is nowhere."""

import hashlib
import hmac
import inspect
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.config import load_keys
from gpud.config.api_keys import digest_of, keys_text, make_key, open_to_others
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import Priority
from gpud.core.keys import ApiKey, Rate, Right
from gpud.http.fields import Fields
from gpud.http.keys import LONGEST, Denied, Keys, shown_key

SECRET = "gpud_hushhushhushhushhushhushhushhushhushhushhus"
LAPTOP = ApiKey("laptop", digest_of(SECRET))


def fields(*pairs: tuple[str, str]) -> Fields:
    return Fields([(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs])


# Finding -------------------------------------------------------------------------------------------------------------


def test_a_key_is_found_among_others() -> None:
    """Whichever place it has."""
    made = [make_key() for _ in range(5)]
    entries = [ApiKey(f"k{number}", digest_of(key)) for number, key in enumerate(made)]
    keys = Keys(entries)
    assert [keys.find(key) for key in made] == entries


@pytest.mark.parametrize(
    "shown", ["", SECRET[:-1], SECRET + "x", SECRET.upper(), " " + SECRET, "é", "\udc80", "x" * 10**6]
)
def test_what_is_no_key_is_nobodys(shown: str) -> None:
    """Nearly right is wrong; nothing that can be sent raises."""
    assert Keys([LAPTOP]).find(shown) is None


def test_a_digest_is_no_key() -> None:
    """Whoever has read the file cannot come in with what is in it."""
    keys = Keys([LAPTOP])
    assert keys.find(LAPTOP.digest.hex()) is None
    assert keys.find(f"sha256:{LAPTOP.digest.hex()}") is None
    assert keys.find(LAPTOP.digest.decode("latin-1")) is None


def test_every_key_is_compared_whichever_it_is() -> None:
    """The time says neither whether a key is known nor which it is: each search makes the same comparisons."""
    compared: list[int] = []

    def counted(one: bytes, other: bytes) -> bool:
        assert len(one) == len(other)
        compared.append(len(one))
        return one == other

    made = [make_key() for _ in range(7)]
    keys = Keys([ApiKey(str(number), digest_of(key)) for number, key in enumerate(made)], are_same=counted)
    for shown in (made[0], made[6], make_key(), "short"):
        compared.clear()
        keys.find(shown)
        assert compared == [32] * 7


def test_the_comparison_takes_constant_time() -> None:
    """By default it is that of the standard library which is made for it."""
    assert inspect.signature(Keys).parameters["are_same"].default is hmac.compare_digest


@given(st.text(max_size=LONGEST))
def test_no_other_text_is_a_key(shown: str) -> None:
    """Of all that could be shown."""
    assert Keys([LAPTOP]).find(shown) is None or shown == SECRET


# Showing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", f"Bearer {SECRET}"),
        ("authorization", f"bearer   {SECRET} "),
        ("X-API-Key", SECRET),
        ("x-api-key", f" {SECRET}"),
        ("api-key", SECRET),
    ],
)
def test_each_way_to_show_a_key_is_known(name: str, value: str) -> None:
    """OpenAI's, Anthropic's, Azure's."""
    assert shown_key(fields(("Host", "x"), (name, value))) == SECRET


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("Authorization", ""),),
        (("Authorization", "Bearer"),),
        (("Authorization", "Bearer "),),
        (("Authorization", "Basic dXNlcjpwYXNz"),),
        (("Authorization", SECRET),),
        (("X-API-Key", ""),),
        (("Cookie", f"api-key={SECRET}"),),
        (("Proxy-Authorization", f"Bearer {SECRET}"),),
    ],
)
def test_what_shows_no_key_shows_none(headers: tuple[tuple[str, str], ...]) -> None:
    """Other schemes are for whoever stands before gpud."""
    assert shown_key(fields(*headers)) == ""


def test_the_same_key_twice_is_one() -> None:
    """Some clients send both headers; a proxy's own scheme beside a key does not matter."""
    assert shown_key(fields(("Authorization", f"Bearer {SECRET}"), ("x-api-key", SECRET))) == SECRET
    assert shown_key(fields(("Authorization", "Basic YTpi"), ("x-api-key", SECRET))) == SECRET


@pytest.mark.parametrize(
    "headers",
    [
        (("Authorization", f"Bearer {SECRET}"), ("X-API-Key", "other")),
        (("X-API-Key", SECRET), ("api-key", "other")),
        (("Authorization", f"Bearer {SECRET}"), ("Authorization", f"Bearer {SECRET}")),
        (("Authorization", "Bearer other"), ("authorization", f"Bearer {SECRET}")),
        (("X-API-Key", "a"), ("x-api-key", "b")),
        (("X-API-Key", f"a, {SECRET}"),),
    ],
)
def test_two_keys_are_none(headers: tuple[tuple[str, str], ...]) -> None:
    """Whoever stands between could have looked at the other one. The answer repeats neither."""
    with pytest.raises(Denied) as caught:
        shown_key(fields(*headers))
    assert caught.value.status == 400
    assert SECRET not in caught.value.text


# The file ------------------------------------------------------------------------------------------------------------


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(path: Path) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load_keys(path)
    assert "hush" not in str(caught.value)
    assert all(one.startswith(str(path)) for one in caught.value.problems)
    return "\n".join(one.removeprefix(str(path)) for one in caught.value.problems)


def test_a_key_has_enough_chance_in_it() -> None:
    """At least 128 bits: 43 of 62 letters; nothing in it needs quotes in a shell, a header or YAML."""
    made = {make_key() for _ in range(200)}
    assert len(made) == 200
    assert all(len(key) == 48 and key.startswith("gpud_") and key[5:].isalnum() and key.isascii() for key in made)
    assert 62**43 > 2**128
    assert len({key[5:] for key in made} & {key[::-1] for key in made}) == 0
    used = {letter for key in made for letter in key[5:]}
    assert len(used) == 62


def test_both_rooms_hash_alike() -> None:
    """What the file's writer makes, the door finds."""
    assert digest_of(SECRET) == hashlib.sha256(SECRET.encode()).digest()
    assert Keys([ApiKey("a", digest_of(SECRET))]).find(SECRET) is not None


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Whatever a key may have; also names that YAML would take for something else."""
    keys = (
        LAPTOP,
        ApiKey("on", bytes(range(32)), ("tiny", "qwen*"), Rate(60, 60.0), Priority.HIGH, frozenset(Right)),
        ApiKey("1e5", bytes(32), ("*",), Rate(5, 1.0), Priority.LOW, frozenset({Right.MANAGE})),
    )
    assert load_keys(written(tmp_path / "k", keys_text(keys))) == keys


def test_a_list_with_names_is_read_too(tmp_path: Path) -> None:
    """And what is not said has its default."""
    path = written(
        tmp_path / "k", f"- {{name: laptop, hash: 'sha256:{LAPTOP.digest.hex()}', may: manage, allow: tiny}}"
    )
    (key,) = load_keys(path)
    assert key == ApiKey("laptop", LAPTOP.digest, ("tiny",), None, None, frozenset({Right.MANAGE}))
    (key,) = load_keys(written(path, f"laptop: {{hash: sha256:{LAPTOP.digest.hex()}}}"))
    assert key == LAPTOP


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "[]", "null"])
def test_a_file_may_have_no_keys(tmp_path: Path, text: str) -> None:
    """Then nobody comes in by one."""
    assert load_keys(written(tmp_path / "k", text)) == ()


HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SECRET, ": is not a map with a hash in it"),
        (f"- {SECRET}", ":1: entry 1: is not a map with a hash in it"),
        (f"- {{key: {SECRET}}}", ":1: entry 1: is not a map with a hash in it"),
        (f"laptop: {SECRET}", ":1: laptop: is not a map with a hash in it"),
        (f"{SECRET}: {{hash: {HASH}}}", ":1: what stands here is not allowed as the name of a key"),
        (f"a: {{hash: {SECRET}}}", ":1: a.hash: is not sha256: and 64 digits"),
        (f"a: {{hash: 'sha256:{SECRET}'}}", ":1: a.hash: is not sha256: and 64 digits"),
        (f"a: {{hash: [{SECRET}]}}", ":1: a.hash: is not sha256: and 64 digits"),
        (f"a: {{hash: {HASH}, {SECRET}: x}}", ":1: a.…: unknown key; allowed: name hash allow"),
        (f"a: {{hash: {HASH}, hush: {SECRET}}}".replace("hush:", "tokn:"), ":1: a.tokn: unknown key"),
        (f"a: {{hash: {HASH}, alow: [x]}}", 'did you mean "allow"?'),
        (f"a: {{hash: {HASH}, key: {SECRET}, key: {SECRET}}}", "given twice"),
        (f"a: *{SECRET}", '"*…" refers to an anchor that does not exist'),
        ("a: {allow: [x]}", ":1: a: has no hash"),
        (f"a: {{hash: {HASH}, rate: 60}}", ":1: a.rate: is not what it has to be; allowed: like 60/min"),
        (f"a: {{hash: {HASH}, priority: urgent}}", ":1: a.priority: is not what it has to be; allowed: low normal"),
        (f"a: {{hash: {HASH}, may: all}}", ":1: a.may: is not a list of what it may; allowed: use manage"),
        (f"a: {{hash: {HASH}, may: []}}", ":1: a.may: is not a list of what it may"),
        (f"a: {{hash: {HASH}, allow: []}}", ":1: a.allow: is not a list of models"),
        (f"a: {{hash: {HASH}, allow: {{x: y}}}}", ":1: a.allow: is not a list of models"),
        (f"a: {{hash: {HASH}, allow: ['*x']}}", ":1: a.allow: one of them is neither the name"),
        (f"a: {{hash: {HASH}}}\nb: {{hash: {HASH}}}", ':2: b.hash: is that of "a" too'),
        (f"- {{name: a, hash: {HASH}}}\n- {{name: a, hash: sha256:{'1' * 64}}}", ":2: a: is there twice"),
    ],
)
def test_mistakes_are_named_and_keys_are_not_repeated(tmp_path: Path, text: str, said: str) -> None:
    """A key that somebody has put into the file is in no message."""
    assert said in problems(written(tmp_path / "k", text))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620, 0o666, 0o777])
def test_a_file_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    """With the mode, and what to do."""
    told = problems(written(tmp_path / "k", "{}", mode))
    assert f"has the mode {mode:04o}" in told
    assert "chmod 600 it" in told


def stat_of(mode: int, uid: int) -> os.stat_result:
    return os.stat_result((0o100000 | mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


def test_only_roots_file_may_be_readable_for_its_group() -> None:
    """So gpud, which is not root, can read it and cannot write it."""
    assert open_to_others(stat_of(0o640, 0)) == ""
    assert open_to_others(stat_of(0o600, 1000)) == "" or os.geteuid() not in (0, 1000)
    assert "0640" in open_to_others(stat_of(0o640, 1000)) or os.geteuid() not in (0, 1000)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe would hold up the start for ever; a directory, nothing, too much, and not text."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in problems(tmp_path / "pipe")
    assert "does not exist; gpudctl key add NAME makes it" in problems(tmp_path / "none")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n#")
    (tmp_path / "large").chmod(0o600)
    assert "is larger than 1 MiB" in problems(tmp_path / "large")
    (tmp_path / "bytes").write_bytes(b"\xff\xfehush")
    (tmp_path / "bytes").chmod(0o600)
    assert "is not UTF-8" in problems(tmp_path / "bytes")


# What a key may ------------------------------------------------------------------------------------------------------


def test_a_key_is_for_models_by_name_alias_or_beginning() -> None:
    """And for nothing else."""
    key = ApiKey("a", bytes(32), ("tiny", "qwen*"))
    assert key.allows("tiny")
    assert key.allows("qwen3-8b")
    assert key.allows("big", "qwen-alias")
    assert not key.allows("big")
    assert not key.allows("tiny2")
    assert not key.allows("Tiny")
    assert not key.allows()
    assert ApiKey("b", bytes(32)).allows("anything")
    assert not ApiKey("c", bytes(32), ()).allows("anything")


def test_a_request_never_gets_more_than_the_keys_priority() -> None:
    """Less it may ask for."""
    key = ApiKey("a", bytes(32), priority=Priority.NORMAL)
    assert key.priority_for(None) == Priority.NORMAL
    assert key.priority_for(Priority.CRITICAL) == Priority.NORMAL
    assert key.priority_for(Priority.LOW) == Priority.LOW
    free = ApiKey("b", bytes(32))
    assert free.priority_for(None) is None
    assert free.priority_for(Priority.CRITICAL) == Priority.CRITICAL


def test_nothing_shows_what_is_secret() -> None:
    """Neither the key nor its digest is in what a log or a debugger prints."""
    for text in (repr(LAPTOP), repr(Keys([LAPTOP])), str(Keys([LAPTOP])), f"{[LAPTOP]}"):
        assert "laptop" in text
        assert LAPTOP.digest.hex() not in text
        assert repr(LAPTOP.digest) not in text
    assert SECRET not in keys_text([LAPTOP])
