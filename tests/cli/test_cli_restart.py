"""``gpudctl restart`` with a real daemon: which processes go, which come, and which stay."""

from pathlib import Path

from cli_place import RealDaemon, finish


def pid_of(gpud: RealDaemon, model: str) -> int:
    """Of its engine; 0: none."""
    return int(gpud.place.json("status", model)["pid"])


def test_a_model_comes_back_with_a_new_process(gpud: RealDaemon) -> None:
    """By its alias, too; the old process has ended, the others are not touched, and the line says what happened."""
    gpud.place.gpudctl("load", "tiny", "other:3b")
    before, other = pid_of(gpud, "tiny"), pid_of(gpud, "other:3b")
    done = gpud.place.gpudctl("restart", "small")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith('unloaded "tiny", freed ')
    assert second.startswith('restarted "tiny": in ')
    assert pid_of(gpud, "tiny") not in (0, before)
    assert not Path(f"/proc/{before}").exists()
    assert pid_of(gpud, "other:3b") == other


def test_an_engine_stands_for_all_that_it_has_loaded(gpud: RealDaemon) -> None:
    """Every loaded model of it, each once, and none that was not loaded; every old engine is gone before one comes."""
    gpud.place.gpudctl("load", "tiny", "other:3b")
    before = {pid_of(gpud, model) for model in ("tiny", "other:3b")}
    said = gpud.place.json("restart", "custom", "tiny")
    assert sorted(said["restarted"]) == sorted(said["unloaded"]) == ["other:3b", "tiny"]
    assert said["stayed"] == []
    assert {pid_of(gpud, model) for model in ("tiny", "other:3b")}.isdisjoint({*before, 0})
    kinds = [
        record["kind"]
        for record in gpud.place.json("explain", "-n", "40")["records"]
        if record["kind"] in ("load-started", "model-unloaded")
    ]
    # The newest first.
    assert kinds[:4] == ["load-started", "load-started", "model-unloaded", "model-unloaded"]
    assert gpud.place.json("status", "slow")["state"] == "unloaded"


def test_a_model_that_is_not_loaded_is_loaded(gpud: RealDaemon) -> None:
    """As systemctl does it; one that cannot be is told with its reason, and status 1."""
    assert gpud.place.gpudctl("restart", "tiny").stdout.startswith('restarted "tiny": in ')
    failed = gpud.place.gpudctl("restart", "broken")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert 'cannot load "broken"' in failed.stderr
    gpud.place.gpudctl("reset", "broken")


def test_an_engine_with_nothing_loaded_is_no_error(gpud: RealDaemon) -> None:
    """Nothing is loaded that nobody asked for; what has failed is named."""
    done = gpud.place.gpudctl("restart", "custom")
    assert (done.returncode, done.stdout) == (0, "nothing of custom is loaded: nothing to restart\n")
    gpud.place.gpudctl("load", "broken")
    text = gpud.place.gpudctl("restart", "custom").stdout
    assert text.endswith('nothing to restart; failed: "broken": gpudctl restart broken tries it again\n')
    gpud.place.gpudctl("reset", "broken")


def test_an_unknown_name_is_refused_before_anything_is_touched(gpud: RealDaemon) -> None:
    """With the nearest model and the engines that there are; an engine that serves nothing here is told as such."""
    gpud.place.gpudctl("load", "tiny")
    before = pid_of(gpud, "tiny")
    done = gpud.place.gpudctl("restart", "tiny", "tini")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        'gpudctl: cannot restart "tini": no engine is called so (engines that serve models: custom), '
        'and there is no model "tini"; did you mean "tiny"?\n'
    )
    served = gpud.place.gpudctl("restart", "llamacpp")
    assert served.returncode == 1
    assert 'cannot restart "llamacpp": no model is served by it' in served.stderr
    assert pid_of(gpud, "tiny") == before
    assert gpud.place.gpudctl("restart").returncode == 2


def test_what_somebody_holds_stays_unless_it_is_forced(gpud: RealDaemon, tmp_path: Path) -> None:
    """Status 4 and who holds it; the others of the engine are restarted all the same."""
    go = tmp_path / "go"
    go.unlink(missing_ok=True)
    holding = gpud.place.start(
        "run", "--hold", "tiny", "--", "sh", "-c", f"echo on; until test -e {go}; do sleep .05; done"
    )
    assert holding.stdout is not None
    assert holding.stdout.readline() == "on\n"
    gpud.place.gpudctl("load", "other:3b")
    held, other = pid_of(gpud, "tiny"), pid_of(gpud, "other:3b")
    refused = gpud.place.gpudctl("restart", "custom")
    assert refused.returncode == 4
    assert '"tiny"' in refused.stderr
    assert pid_of(gpud, "tiny") == held
    assert pid_of(gpud, "other:3b") not in (0, other)
    forced = gpud.place.gpudctl("restart", "--force", "tiny")
    assert forced.returncode == 0, forced.stderr
    assert pid_of(gpud, "tiny") not in (0, held)
    go.touch()
    assert finish(holding)[0] == 0
