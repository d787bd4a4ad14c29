"""gpudctl models and switch on bad input, and against a daemon that refuses or says little: nothing is done by half."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_place import GPUDCTL, PATIENCE_S, Place, StubDaemon, error, model, reply, shows
from dbus_next.signature import Variant
from test_cli_stub import with_stub

OWN = "org.kernelcore.GpuD.Error"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"

AGAIN_S = 5.0
"""A person who sees nothing happen presses the key again."""


def entry(name: str, *paths: str, **values: Any) -> dict[str, Variant]:
    """A record of ListCatalog."""
    words = {"Aliases": [], "Paths": list(paths), "Sources": ["folder"], "Tags": []}
    texts = dict.fromkeys(
        ("Architecture", "Quantization", "Parameters", "Mmproj", "Digest", "Priority", "Notes", "Problem"), ""
    )
    texts |= {"Id": name, "Path": paths[0] if paths else f"custom:{name}", "Format": "gguf", "Purpose": "completion"}
    numbers = dict.fromkeys(("Number", "SizeBytes", "EstimateBytes", "UsageCount", "LastUsedUSec", "LoadUSec"), 0)
    numbers |= {"FirstSeenUSec": 0, "LastScannedUSec": 0}
    record = {key: Variant("as", value) for key, value in words.items()}
    record |= {key: Variant("s", value) for key, value in texts.items()}
    record |= {key: Variant("t", value) for key, value in numbers.items()}
    record |= {"TrainedContext": Variant("u", 0), "Parts": Variant("u", 1), "Configured": Variant("b", False)}
    for key, value in values.items():
        record[key] = Variant(record[key].signature, value)
    return record


def has(*entries: dict[str, Variant]) -> Callable[[Any], list[Any]]:
    """ListCatalog of a daemon that has these."""

    def answer(message: Any) -> list[Any]:
        wanted = message.body[0]
        found = [one for one in entries if not wanted or one["Id"].value in wanted]
        if wanted and not found:
            return error(f"{OWN}.NoSuchModel", f'there is no model "{wanted[0]}"')(message)
        return reply("aa{sv}", found)(message)

    return answer


def scanned(message: Any) -> list[Any]:
    return reply("a{sv}", {})(message)


def catalog(stub: StubDaemon, *entries: dict[str, Variant], **states: str) -> None:
    """A daemon with these models, unloaded but for those whose state is given."""
    records = [model(one["Id"].value, State=states.get(one["Id"].value, "unloaded")) for one in entries]
    stub.answers |= {"ListCatalog": has(*entries), "Scan": scanned, **shows(*records)}


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("models lits", "invalid choice"),
        ("models info", 'info needs the name of a model; "gpudctl models" lists the names'),
        ("models info a b", 'info takes one name, not "b" too'),
        ("models scan a", "scan takes no name"),
        ("models tag a", "tag needs one word at least; gpudctl models tag a WORD"),
        ("models unalias a", "unalias needs one word at least"),
        ("models set-priority a", "one of low, normal, high, critical, default"),
        (
            "models set-priority a urgent",
            'one priority, and "urgent" is none; one of low, normal, high, critical, default',
        ),
        ("models set-priority a low high", "needs one priority"),
        ("models note", "note needs the name"),
        ("models rm", "rm needs the name"),
        ("models rm a b", 'rm takes one name, not "b" too; run it for each of them'),
        ("models forget a b", 'forget takes one name, not "b" too'),
        ("models --tag x", '--tag does not go with no action; it belongs to "gpudctl models list"'),
        ("models info a --all", '--all does not go with info; it belongs to "gpudctl models list"'),
        ("models list --aliases", '--aliases does not go with list; it belongs to "gpudctl models"'),
        ("models tag a b --loaded", '--loaded does not go with tag; it belongs to "gpudctl models" or "gpudctl models'),
        ("models forget a --yes", '--yes does not go with forget; it belongs to "gpudctl models rm"'),
        ("switch", "the following arguments are required: MODEL"),
        ("switch a b", "unrecognized arguments: b"),
        ("switch a --keep", "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_right(tmp_path: Path, line: str, what: str) -> None:
    """Status 2, one line, and nobody is asked: here runs no bus at all."""
    done = Place(tmp_path).gpudctl(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line", ["models list", "models info a", "models scan", "models tag a b", "models rm a --yes", "switch a"]
)
def test_without_a_daemon_the_status_says_so(place: Place, line: str) -> None:
    """Status 3, as of every command."""
    assert place.gpudctl(*line.split()).returncode == 3


@pytest.mark.parametrize(
    ("line", "member"),
    [
        ("models scan", "Scan"),
        ("models tag a b", "Annotate"),
        ("models note a", "Annotate"),
        ("models set-priority a low", "Annotate"),
        ("models forget a", "Forget"),
    ],
)
def test_what_is_not_allowed_is_refused(place: Place, line: str, member: str) -> None:
    """Status 4, with the daemon's sentence."""

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a", "/m/a.gguf"))
        stub.answers[member] = error(DENIED, "uid 1000 may not do that; ask an administrator")
        done = await stub.gpudctl(place, *line.split())
        assert done == (4, "", "gpudctl: uid 1000 may not do that; ask an administrator\n")

    with_stub(place, work)


# Seeing and saying ---------------------------------------------------------------------------------------------------


def test_what_a_file_says_does_not_move_the_cursor(place: Place) -> None:
    """Names and headers may hold anything: escapes are shown as such to people, and left as they are for programs."""
    path = "/m/\x1b[2Jevil\n.gguf"

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("evil", path, Architecture="ll\x1b[31mama", Problem="no\ttensors", Notes="one\ntwo\x07"))
        for line in ("models list", "models info evil"):
            status, out, err = await stub.gpudctl(place, *line.split())
            assert status == 0 and "\x1b" not in out + err and "ll\\x1b[31mama" in out
        assert "files         /m/\\x1b[2Jevil\\n.gguf\n" in out
        assert "notes         one\n                two\\x07\n" in out
        _, out, _ = await stub.gpudctl(place, "--json", "models", "list")
        assert json.loads(out)[0]["path"] == path
        stub.answers["Annotate"] = reply("")
        status, out, _ = await stub.gpudctl(place, "models", "note", "evil", "x")
        assert (status, out) == (0, 'notes of "evil": one\ntwo\\x07\n')
        stub.answers["Annotate"] = error(f"{OWN}.InvalidOption", 'cannot do it to "\x1b[2Jevil"')
        status, out, err = await stub.gpudctl(place, "models", "note", "evil", "x")
        assert (status, out, err) == (2, "", 'gpudctl: cannot do it to "\\x1b[2Jevil"\n')

    with_stub(place, work)


@pytest.mark.parametrize("line", ["models info a", "models list a"])
def test_who_names_models_is_not_sent_all_of_them(place: Place, line: str) -> None:
    """Of thousands the one is asked for, and those that Overview has beside it are none of the answer."""

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a"), entry("b"), a="ready", b="ready")
        status, out, err = await stub.gpudctl(place, "--json", *line.split())
        assert (status, err) == (0, "")
        found = json.loads(out)
        (one,) = found if isinstance(found, list) else [found]
        assert (one["name"], one["state"]) == ("a", "ready")
        assert [body for name, body, _ in stub.calls if name == "Overview"] == [[0, "", ["a"]]]
        assert "ListModels" not in stub.names()

    with_stub(place, work)


def test_nothing_to_list_says_how_to_get_a_model(place: Place) -> None:
    """An empty list is no failure; for a program it is an empty list."""

    async def work(stub: StubDaemon) -> None:
        catalog(stub)
        status, out, err = await stub.gpudctl(place, "models", "list")
        assert (status, out) == (0, "there are no models\n") and "gpudctl pull" in err
        assert await stub.gpudctl(place, "models", "list", "--json") == (0, "[]\n", "")
        assert (await stub.gpudctl(place, "models", "list", "--tag", "x"))[:2] == (0, "no model matches\n")
        told = 'there are no models: "gpudctl models list" says how to get one\n'
        assert await stub.gpudctl(place, "models") == (0, "", told)
        assert await stub.gpudctl(place, "models", "--loaded") == (0, "", "")

    with_stub(place, work)


@pytest.mark.parametrize(
    ("configured", "said"),
    [
        ("", "copy a .gguf file to /var/lib/ml-models/llamacpp/models, "),
        ("registry: {paths: [/srv/a, /srv/b]}", "copy a .gguf file to /srv/a or /srv/b, or see"),
        ("registry: {paths: [/srv/a]}", "copy a .gguf file to /srv/a, or see"),
        ("registry: {paths: []}", "registry.paths is empty in "),
        ("registry: {enable: false, paths: [/srv/a]}", "registry.enable is false in "),
    ],
)
def test_how_to_come_by_a_model_follows_from_where_gpud_looks(place: Place, configured: str, said: str) -> None:
    """Nobody is sent to a folder in which gpud does not look."""
    file = place.directory / "config" / "gpud" / "gpud.yaml"
    file.parent.mkdir()
    file.write_text(configured)

    async def work(stub: StubDaemon) -> None:
        catalog(stub)
        _, _, err = await stub.gpudctl(place, "models", "list")
        assert err.startswith(said)
        assert (str(file) in err) is err.startswith("registry.")

    with_stub(place, work)


def test_what_was_not_said_cannot_be_taken_back(place: Place) -> None:
    """Status 2, with what was said; nothing is written."""

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a", "/m/a.gguf", Tags=["mine", "new"]))
        status, _, err = await stub.gpudctl(place, "models", "untag", "a", "old")
        assert (status, err) == (2, 'gpudctl: "a" does not have the tag "old"; it has mine, new\n')
        status, _, err = await stub.gpudctl(place, "models", "unalias", "a", "b")
        assert (status, err) == (2, 'gpudctl: "a" does not have the alias "b"; it has none\n')
        assert "Annotate" not in stub.names()

    with_stub(place, work)


# Removing ------------------------------------------------------------------------------------------------------------


def files(folder: Path, *names: str) -> list[Path]:
    made = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (2 << 20))
        made.append(path)
    return made


def hub(root: Path, revision: str, name: str, blob: Path) -> Path:
    """A link in a snapshot of a hub's cache."""
    link = root / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def run_rm(place: Place, *entries: dict[str, Variant], words: tuple[str, ...] = ("a", "--yes")) -> tuple[int, str, str]:
    """gpudctl models rm, against a daemon that has these."""
    came: list[tuple[int, str, str]] = []

    async def work(stub: StubDaemon) -> None:
        catalog(stub, *entries)
        came.append(await stub.gpudctl(place, "models", "rm", *words))

    with_stub(place, work)
    return came[0]


def test_all_parts_go_and_their_projector(place: Place, tmp_path: Path) -> None:
    """The daemon names the first part; what lies beside it stays. The JSON has each file, and the bytes."""
    parts = files(tmp_path / "m", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "a-mmproj.gguf")
    (other,) = files(tmp_path / "m", "b.gguf")
    status, out, err = run_rm(
        place, entry("a", str(parts[0]), Parts=2, Mmproj=str(parts[2])), words=("a", "--yes", "--json")
    )
    assert (status, err) == (0, "")
    assert json.loads(out) == {"name": "a", "files": [str(part) for part in parts], "freed_bytes": 6 << 20, "left": []}
    assert sorted((tmp_path / "m").iterdir()) == [other]


def test_a_projector_that_another_model_has_stays(place: Place, tmp_path: Path) -> None:
    """It is said whose it is, too."""
    mine, projector = files(tmp_path / "m", "a.gguf", "mmproj.gguf")
    both = {"Mmproj": str(projector)}
    status, out, err = run_rm(place, entry("a", str(mine), **both), entry("b", "/m/b.gguf", **both))
    assert (status, out) == (0, 'deleted "a": 1 file, 2 MiB\n')
    assert err == f'  {mine}  2 MiB\nits projector stays, "b" has it, too: {projector}\n'
    assert projector.exists() and not mine.exists()


def test_a_blob_goes_with_the_last_link_to_it(place: Place, tmp_path: Path) -> None:
    """All links of the model go, through whichever folder they were found; a blob that a README shares stays."""
    root = tmp_path / "hub" / "models--o--a"
    shared, alone = files(root / "blobs", "1" * 64, "2" * 64)
    first, second = hub(root, "rev1", "a.gguf", alone), hub(root, "rev2", "a.gguf", alone)
    seen = tmp_path / "also"
    seen.symlink_to(tmp_path / "hub")
    other, keeper = hub(root, "rev1", "b.gguf", shared), hub(root, "rev2", "kept.gguf", shared)
    status, out, err = run_rm(place, entry("a", str(first), str(seen / second.relative_to(tmp_path / "hub"))))
    shown = [f"  {first}  a link", f"  {seen / second.relative_to(tmp_path / 'hub')}  a link", f"  {alone}  2 MiB"]
    assert (status, out, err.splitlines()) == (0, 'deleted "a": 3 files, 2 MiB\n', shown)
    assert not alone.exists() and not first.is_symlink() and not second.is_symlink()
    status, out, _ = run_rm(place, entry("a", str(other)))
    assert (status, out) == (0, 'deleted "a": 1 file, 0 MiB\n')
    assert shared.exists() and keeper.is_symlink()


def test_a_link_goes_and_what_it_leads_to_stays(place: Place, tmp_path: Path) -> None:
    """It may lie on a disk that others have, too; a hard link's bytes stay as long as one has them."""
    (far,) = files(tmp_path / "far", "a.gguf")
    (tmp_path / "m").mkdir()
    link, hard = tmp_path / "m" / "a.gguf", tmp_path / "m" / "hard.gguf"
    link.symlink_to(far)
    hard.hardlink_to(far)
    status, out, _ = run_rm(place, entry("a", str(link), str(hard)))
    assert (status, out) == (0, 'deleted "a": 2 files, 0 MiB\n')
    assert far.exists() and not link.is_symlink() and not hard.exists()


@pytest.mark.parametrize("word", ["b", "b.gguf", "{copy}", "./n/b.gguf", "{linked}"])
def test_whoever_names_one_copy_keeps_the_others(place: Place, tmp_path: Path, word: str) -> None:
    """By a name of its own, by its path, or by a way that leads there; the model that an engine has stays loaded."""
    first, copy, projector = files(tmp_path / "m", "a.gguf") + files(tmp_path / "n", "b.gguf", "mmproj.gguf")
    (tmp_path / "linked").symlink_to(copy.parent)
    named = word.format(copy=copy, linked=tmp_path / "linked" / "b.gguf")

    async def work(stub: StubDaemon) -> None:
        import asyncio

        known = entry("a", str(first), str(copy), Mmproj=str(projector), Configured=True)
        stub.answers |= {"ListCatalog": reply("aa{sv}", [known]), "Scan": scanned, **shows(model("a", State="ready"))}
        process = await asyncio.create_subprocess_exec(
            *(*GPUDCTL, "models", "rm", named, "--yes"),
            cwd=tmp_path,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, out.decode()) == (0, 'deleted a copy of "a": 1 file, 2 MiB\n')
        assert err.decode().splitlines() == [f"  {copy}  2 MiB", f"the model stays, in {first}"]
        assert "Unload" not in stub.names()

    with_stub(place, work)
    assert first.exists() and projector.exists() and not copy.exists()


@pytest.mark.parametrize("word", ["a", "best"])
def test_whoever_names_the_model_has_all_of_it_deleted(place: Place, tmp_path: Path, word: str) -> None:
    """By its name, or one that somebody gave it; everything that goes is shown before."""
    first, copy = files(tmp_path / "m", "a.gguf") + files(tmp_path / "n", "b.gguf")
    known = entry("a", str(first), str(copy), Aliases=["best"])
    came: list[tuple[int, str, str]] = []

    async def work(stub: StubDaemon) -> None:
        stub.answers |= {"ListCatalog": reply("aa{sv}", [known]), "Scan": scanned, **shows(model("a"))}
        came.append(await stub.gpudctl(place, "models", "rm", word, "--yes"))

    with_stub(place, work)
    assert came == [(0, 'deleted "a": 2 files, 4 MiB\n', f"  {first}  2 MiB\n  {copy}  2 MiB\n")]
    assert not first.exists() and not copy.exists()


def test_the_copy_that_an_engine_is_given_is_unloaded_first(place: Place, tmp_path: Path) -> None:
    """Named by its path, where others lie beside it that stay."""
    first, copy = files(tmp_path / "m", "a.gguf") + files(tmp_path / "n", "a.gguf")

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a", str(first), str(copy)), a="ready")
        stub.answers["Unload"] = error(f"{OWN}.Busy", '"a" is held by sam')
        status, _, err = await stub.gpudctl(place, "models", "rm", str(first), "--yes")
        assert status == 4 and "nothing was deleted" in err

    with_stub(place, work)
    assert first.exists() and copy.exists()


def test_a_copy_in_a_folder_goes_and_ollamas_stays(place: Place, tmp_path: Path) -> None:
    """What is in the store is not ours, and does not keep what is not in it."""
    mine, blob = files(tmp_path / "m", "a.gguf") + files(tmp_path / "blobs", "sha256-" + "1" * 64)
    both = entry("a", str(mine), str(blob), Sources=["folder", "ollama"])
    status, _, err = run_rm(place, both, words=(str(blob), "--yes"))
    assert status == 2 and "in Ollama's store" in err
    status, out, _ = run_rm(place, both, words=(str(mine), "--yes"))
    assert (status, out) == (0, 'deleted a copy of "a": 1 file, 2 MiB\n')
    assert blob.exists() and not mine.exists()


def test_a_file_of_no_model_is_not_deleted(place: Place, tmp_path: Path) -> None:
    """Whatever else can be done with it, gpud knows nothing of it."""
    (other,) = files(tmp_path / "m", "letters.txt")
    status, out, err = run_rm(place, entry("a", "/m/a.gguf"), words=(str(other), "--yes"))
    assert (status, out) == (1, "")
    assert err.startswith(f"gpudctl: no model that gpud knows is in {other}; ")
    assert other.exists()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"Sources": ["folder", "ollama"]}, "in Ollama's store"),
        ({"Format": "safetensors"}, "is a whole folder"),
    ],
)
def test_what_is_not_one_file_of_ours_is_left(place: Place, tmp_path: Path, given: dict[str, Any], what: str) -> None:
    """Status 2, with who can remove it."""
    (mine,) = files(tmp_path / "m", "a.gguf")
    status, out, err = run_rm(place, entry("a", str(mine), **given))
    assert (status, out) == (2, "") and what in err
    assert mine.exists()


def test_a_name_that_is_no_text_is_nobody_elses(place: Place, tmp_path: Path) -> None:
    """What the bus shows of it may be the name of another file, which must not go in its place."""
    (innocent,) = files(tmp_path / "m", "a\\xff.gguf")
    status, _, err = run_rm(place, entry("a", str(innocent)))
    assert status == 2 and "whose name is not valid text" in err
    assert innocent.exists()


def test_a_model_without_files_is_only_configured(place: Place, tmp_path: Path) -> None:
    """What stands for its path is nothing on the disk of whoever runs the command."""
    (lure,) = files(tmp_path, "custom:a")
    place.environment["PWD"] = str(tmp_path)
    command = [*GPUDCTL, "models", "rm", "a", "--yes"]

    async def work(stub: StubDaemon) -> None:
        import asyncio

        catalog(stub, entry("a", "custom:a", Configured=True))
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=place.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, err) == (
            2,
            b'gpudctl: "a" has no file; it is only configured: remove it from gpud.yaml\n',
        )

    with_stub(place, work)
    assert lure.exists()


def test_a_folder_that_is_not_ours_to_change_keeps_everything(place: Place, tmp_path: Path) -> None:
    """Also what could have been deleted: nothing goes before everything can, and the model stays loaded."""
    first, second = files(tmp_path / "mine", "a.gguf") + files(tmp_path / "theirs", "a.gguf")
    (tmp_path / "theirs").chmod(0o555)
    # Without its capabilities root is somebody like everybody.
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []

    async def work(stub: StubDaemon) -> None:
        import asyncio

        catalog(stub, entry("a", str(first), str(second)), a="ready")
        command = [*powerless, *GPUDCTL, "models", "rm", "a", "--yes"]
        process = await asyncio.create_subprocess_exec(
            *command, env=place.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 4
        assert f"cannot delete {second}: you may not change what is in its folder, which belongs to".encode() in err
        assert b"nothing was deleted" in err and "Unload" not in stub.names()

    with_stub(place, work)
    assert first.exists() and second.exists()


def test_a_model_that_somebody_holds_keeps_its_files(place: Place, tmp_path: Path) -> None:
    """Status 4, and who it is."""
    (mine,) = files(tmp_path / "m", "a.gguf")

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a", str(mine)), a="ready")
        stub.answers["Unload"] = error(f"{OWN}.Busy", '"a" is held by sam')
        status, out, err = await stub.gpudctl(place, "models", "rm", "a", "--yes")
        assert (status, out) == (4, "")
        assert err.splitlines()[1:] == ['gpudctl: "a" is held by sam; nothing was deleted']

        def late(message: Any) -> list[Any]:
            end = stub.signal("JobRemoved", "usss", 9, "a", "canceled", "")
            return [*reply("u", 9)(message), end]

        stub.answers["Unload"] = late
        status, _, err = await stub.gpudctl(place, "models", "rm", "a", "--yes")
        assert status == 4
        assert err.splitlines()[1:] == ['gpudctl: "a" is still in use: unloading "a" was canceled; nothing was deleted']

    with_stub(place, work)
    assert mine.exists()


def test_a_scan_that_is_refused_does_not_undo_anything(place: Place, tmp_path: Path) -> None:
    """The file is gone, which is what was wished; gpud notices by itself."""
    (mine,) = files(tmp_path / "m", "a.gguf")

    async def work(stub: StubDaemon) -> None:
        catalog(stub, entry("a", str(mine), Configured=True))
        stub.answers["Scan"] = error(DENIED, "uid 1000 may not")
        status, out, err = await stub.gpudctl(place, "models", "rm", "a", "--yes")
        assert (status, out) == (0, 'deleted "a": 1 file, 2 MiB\n')
        assert err.splitlines() == [
            f"  {mine}  2 MiB",
            "gpudctl: not scanned again: uid 1000 may not",
            '"a" is still configured: remove it from gpud.yaml',
        ]

    with_stub(place, work)
    assert not mine.exists()


def test_nobody_to_ask_is_no_yes(place: Place, tmp_path: Path) -> None:
    """Without a terminal nothing is deleted unless the command line says so."""
    (mine,) = files(tmp_path / "m", "a.gguf")
    status, out, err = run_rm(place, entry("a", str(mine)), words=("a",))
    assert (status, out) == (2, "") and "give --yes" in err
    assert mine.exists()


@pytest.mark.parametrize(
    ("typed", "status", "stays"), [(b"y\n", 0, False), (b"\n", 1, True), (b"nope\n", 1, True), (b"\x03", 130, True)]
)
def test_a_person_is_asked(place: Place, tmp_path: Path, typed: bytes, status: int, stays: bool) -> None:
    """With the files and the bytes; only a yes is one, and Ctrl-C ends the command at once."""
    (mine,) = files(tmp_path / "m", "a.gguf")

    async def work(stub: StubDaemon) -> None:
        import asyncio

        catalog(stub, entry("a", str(mine)))

        def person() -> int:
            child, terminal = pty.fork()
            if child == 0:
                os.execve(GPUDCTL[0], [*GPUDCTL, "models", "rm", "a"], place.environment | {"TERM": "dumb"})
            seen = b""
            while b"[y/N] " not in seen:
                assert select.select([terminal], [], [], PATIENCE_S)[0], seen
                seen += os.read(terminal, 4096)
            assert f"{mine}  2 MiB".encode() in seen and b'delete 1 file of "a", 2 MiB?' in seen
            until_s = time.monotonic() + PATIENCE_S
            try:
                while True:
                    os.write(terminal, typed)
                    # Python sees a Ctrl-C of the very moment before it begins to read only with the next key.
                    while select.select([terminal], [], [], AGAIN_S)[0]:
                        os.read(terminal, 4096)
                    if time.monotonic() > until_s:
                        os.kill(child, signal.SIGKILL)
            except OSError:
                pass  # It has ended.
            os.close(terminal)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert await asyncio.to_thread(person) == status

    with_stub(place, work)
    assert mine.exists() is stays


# Switching -----------------------------------------------------------------------------------------------------------


def switching(stub: StubDaemon, **refusals: str) -> None:
    """a and b are loaded; each unload and load is done at once, but for those that are refused."""
    numbers = iter(range(1, 100))

    def job(message: Any) -> list[Any]:
        name = message.body[0]
        if name in refusals:
            return error(f"{OWN}.{refusals[name]}", f'"{name}" is not for you')(message)
        number = next(numbers)
        return [*reply("u", number)(message), stub.signal("JobRemoved", "usss", number, name, "done", "")]

    def known(message: Any) -> list[Any]:
        (name,) = message.body[0]
        if name == "dee":
            return reply("aa{sv}", [entry("d")])(message)
        return error(f"{OWN}.NoSuchModel", f'there is no model "{name}"; there are a, b, c, d')(message)

    records = [model("a", State="ready"), model("b", State="busy"), model("c"), model("d", Aliases=["dee"])]
    stub.answers |= {**shows(*records), "ListCatalog": known, "Unload": job, "Load": job}


def test_the_others_go_before_the_model_comes(place: Place) -> None:
    """By its alias; what is to be kept is not asked to go."""

    async def work(stub: StubDaemon) -> None:
        switching(stub)
        assert await stub.gpudctl(place, "switch", "dee", "--keep", "b") == (0, 'loaded "d"\n', "")
        wishes = [(name, body) for name, body, _ in stub.calls if name in ("Load", "Unload")]
        assert wishes == [("Unload", ["a"]), ("Load", ["d"])]

    with_stub(place, work)


def test_what_somebody_holds_stays_loaded(place: Place) -> None:
    """It is said, and the model is loaded in spite of it, beside it; one JSON object tells all."""

    async def work(stub: StubDaemon) -> None:
        switching(stub, a="Busy", b="NotLoaded")
        status, out, err = await stub.gpudctl(place, "switch", "--json", "c")
        assert (status, err) == (0, 'gpudctl: "a" is not for you\n')
        assert json.loads(out) == {"model": "c", "loaded": True, "unloaded": [], "stayed": ["a"]}

    with_stub(place, work)


def test_a_switch_that_is_refused_says_so(place: Place) -> None:
    """By the statuses of load: there is no room, and the wish to unload is not allowed."""

    async def work(stub: StubDaemon) -> None:
        switching(stub, c="BudgetExceeded")
        assert (await stub.gpudctl(place, "switch", "c"))[0] == 4
        switching(stub, a="Yielded")
        assert (await stub.gpudctl(place, "switch", "c"))[0] == 4
        assert (await stub.gpudctl(place, "switch", "z"))[::2] == (
            1,
            'gpudctl: there is no model "z"; there are a, b, c, d\n',
        )

    with_stub(place, work)
