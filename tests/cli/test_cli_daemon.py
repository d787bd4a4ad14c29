"""gpudctl against the real daemon, with real engines, over a real bus."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli_place import GPUDCTL, NAME, PATIENCE_S, RealDaemon, finish
from jeepney import DBusAddress, HeaderFields, new_method_call
from jeepney.io.blocking import open_dbus_connection

MONITORING = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Monitoring")


def state_of(gpud: RealDaemon, model: str) -> str:
    return str(gpud.place.json("status", model)["state"])


def until_it_says(process: "subprocess.Popen[str]", words: str) -> str:
    """What the process wrote to its stderr up to the line with these words."""
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, f"it ended without saying {words!r}: {seen}"
        seen += line
    return seen


# status --------------------------------------------------------------------------------------------------------------


def test_status_shows_each_model_and_the_memory(gpud: RealDaemon) -> None:
    """A table of all models, columns without content left out, and a line for each device."""
    done = gpud.place.gpudctl("status")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "gpud 0.1.0 on the session bus: idle"
    assert lines[2].split() == ["MODEL", "ENGINE", "STATE"]
    assert [line.split()[0] for line in lines[3:8]] == ["tiny", "other:3b", "slow", "big", "broken"]
    assert re.search(r"^Host memory: .+ GiB used; budget .+ GiB: 0 MiB for models, .+ available$", done.stdout, re.M)


def test_no_command_is_status(gpud: RealDaemon) -> None:
    """gpudctl alone shows the status."""
    assert gpud.place.gpudctl().stdout.startswith("gpud 0.1.0 on the session bus")


def test_status_of_a_loaded_model_says_when_it_goes(gpud: RealDaemon) -> None:
    """Memory, last use and the time that is left appear once a model is loaded."""
    gpud.place.gpudctl("load", "tiny")
    line = next(line for line in gpud.place.gpudctl("status").stdout.splitlines() if line.startswith("tiny"))
    assert re.fullmatch(r"tiny +custom +ready +\d+ MiB +\d+s ago +(5m|4m \d+s)", line)


def test_status_of_one_model_by_its_alias(gpud: RealDaemon) -> None:
    """An alias names the model; the details are those of the model."""
    done = gpud.place.gpudctl("status", "small")
    assert done.stdout.splitlines()[0] == "tiny"
    assert re.search(r"^  aliases +small$", done.stdout, re.M)


def test_status_as_json_has_all_that_the_bus_has(gpud: RealDaemon) -> None:
    """Keys in snake case, sizes as numbers, and the bus that it was asked on."""
    status = gpud.place.json("status")
    assert status["bus"] == "user"
    assert {
        "version",
        "state",
        "degraded",
        "models",
        "gpus",
        "jobs",
        "holds",
        "vram_budget",
        "idle_timeout_usec",
    } <= set(status)
    tiny = status["models"][0]
    assert (tiny["id"], tiny["state"], tiny["need_bytes"]) == ("tiny", "unloaded", 0)
    assert isinstance(status["gpus"][-1]["vram_total"], int)


def test_an_unknown_model_is_told_with_the_nearest_name(gpud: RealDaemon) -> None:
    """A typing error costs one look, not a search."""
    done = gpud.place.gpudctl("status", "tinny")
    assert (done.returncode, done.stderr) == (1, 'gpudctl: there is no model "tinny"; did you mean "tiny"?\n')
    done = gpud.place.gpudctl("load", "tinny")
    assert done.returncode == 1
    assert 'did you mean "tiny"?' in done.stderr


def test_a_name_that_is_no_text_is_a_wrong_command_line(gpud: RealDaemon) -> None:
    """Bytes that are no UTF-8 cannot be sent over the bus; they are shown as numbers."""
    for command in ("load", "unload", "reset"):
        done = gpud.place.gpudctl(command, os.fsdecode(b"a\xffb"))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(
            'gpudctl: cannot tell gpud of "a\\udcffb": it is not valid UTF-8; write it in UTF-8'
        )


def test_models_lists_names(gpud: RealDaemon) -> None:
    """One name a line; only the loaded ones where that was asked for."""
    assert gpud.place.gpudctl("models").stdout.split() == ["tiny", "other:3b", "slow", "big", "broken"]
    assert gpud.place.gpudctl("models", "--loaded").stdout == ""
    gpud.place.gpudctl("load", "tiny")
    assert gpud.place.gpudctl("models", "--loaded", "--aliases").stdout.split() == ["tiny", "small"]


# load ----------------------------------------------------------------------------------------------------------------


def test_load_returns_when_the_model_answers(gpud: RealDaemon) -> None:
    """One line with the time and the memory; the model is ready when the command has ended."""
    done = gpud.place.gpudctl("load", "small")
    assert done.returncode == 0
    assert re.fullmatch(r'loaded "tiny": in \d+\.\d s, \d+ MiB( reserved)?\n', done.stdout)
    assert state_of(gpud, "tiny") == "ready"


def test_load_of_several_models_waits_for_all(gpud: RealDaemon) -> None:
    """Each model has its line, in the order of the command."""
    done = gpud.place.gpudctl("load", "other:3b", "tiny", "tiny")
    assert [line.split('"')[1] for line in done.stdout.splitlines()] == ["other:3b", "tiny"]


def test_a_loaded_model_is_done_at_once(gpud: RealDaemon) -> None:
    """Loading twice is no error."""
    gpud.place.gpudctl("load", "tiny")
    assert gpud.place.gpudctl("load", "tiny").returncode == 0


def test_load_as_json_says_how_each_job_ended(gpud: RealDaemon) -> None:
    """Successes and refusals are in one object, and the status tells of the refusal."""
    done = gpud.place.gpudctl("load", "--json", "tiny", "big")
    results = {one["model"]: one["result"] for one in json.loads(done.stdout)["results"]}
    assert (done.returncode, results) == (4, {"tiny": "done", "big": "failed"})


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(gpud: RealDaemon) -> None:
    """What it needs, what there is, and what to do."""
    done = gpud.place.gpudctl("load", "big")
    assert done.returncode == 4
    assert re.search(r'^gpudctl: cannot load "big": it needs 3000.0 GiB, .+ GiB; .+', done.stderr, re.MULTILINE)
    assert done.stdout == ""


def test_a_model_that_fails_is_told_with_its_reason(gpud: RealDaemon) -> None:
    """The daemon's own sentence, once."""
    done = gpud.place.gpudctl("load", "broken")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gpudctl: ")]
    assert line.startswith('gpudctl: cannot load "broken": /bin/false exited with status 1')
    gpud.place.gpudctl("reset", "broken")


def test_load_with_options_reaches_the_engine(gpud: RealDaemon) -> None:
    """The idle time-out of the command replaces the configured one."""
    gpud.place.gpudctl("load", "tiny", "--idle-timeout", "1h30m")
    status = gpud.place.json("status", "tiny")
    lasts_s = (status["unload_at_usec"] - status["last_used_usec"]) / 1e6
    assert lasts_s == 5400


def test_load_without_waiting_names_the_job(gpud: RealDaemon) -> None:
    """The job can be canceled by its number."""
    done = gpud.place.gpudctl("load", "--no-wait", "slow")
    match = re.fullmatch(r'loading "slow" \(job (\d+)\)\n', done.stdout)
    assert match is not None
    assert re.search(rf'^job {match[1]}: load "slow"', gpud.place.gpudctl("status").stdout, re.M)
    done = gpud.place.gpudctl("cancel", match[1])
    assert (done.returncode, done.stdout) == (0, f"canceled job {match[1]}\n")
    assert gpud.place.gpudctl("cancel", match[1]).returncode == 1


def test_plain_progress_where_nobody_watches(gpud: RealDaemon) -> None:
    """Without a terminal the states come as lines on stderr, and rich is not imported."""
    loading = gpud.place.start("load", "slow")
    until_it_says(loading, "slow: loading\n")
    gpud.open_gate()
    status, out, err = finish(loading)
    assert (status, err) == (0, "")
    assert out.startswith('loaded "slow"')


def test_ctrl_c_cancels_the_load(gpud: RealDaemon) -> None:
    """The load that the command has started is given up, the command says so and ends with 130."""
    loading = gpud.place.start("load", "slow")
    until_it_says(loading, "slow: loading\n")
    loading.send_signal(signal.SIGINT)
    status, _, err = finish(loading)
    assert (status, err) == (130, 'gpudctl: interrupted: canceled the load of "slow"\n')
    assert gpud.place.json("status")["jobs"] == []
    assert gpud.place.gpudctl("wait", "--state", "unloaded", "slow").returncode == 0


def test_a_moving_line_on_a_terminal(gpud: RealDaemon) -> None:
    """On a terminal the progress moves, and is gone when the result is there."""
    ours, theirs = pty.openpty()
    try:
        loading = gpud.place.start("load", "slow", stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = read_until(ours, lambda text: "slow" in text and "loading" in text)
        gpud.open_gate()
        seen += read_until(ours, lambda text: 'loaded "slow"' in text)
        assert loading.wait(PATIENCE_S) == 0
    finally:
        os.close(ours)
    assert "\x1b[2K" in seen.split('loaded "slow"')[0]


def read_until(fd: int, enough: Callable[[str], bool]) -> str:
    """What comes over a terminal until there is enough of it."""
    seen = ""
    while not enough(seen):
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, f"nothing more came after {seen!r}"
        seen += os.read(fd, 65536).decode(errors="replace")
    return seen


# unload --------------------------------------------------------------------------------------------------------------


def test_unload_says_what_it_gave_back(gpud: RealDaemon) -> None:
    """The count and the sum of what was measured."""
    gpud.place.gpudctl("load", "tiny", "other:3b")
    held = [one["vram_bytes"] or one["need_bytes"] for one in gpud.place.json("status")["models"][:2]]
    done = gpud.place.gpudctl("unload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"unloaded 2 models, freed {sum(held) / 2**20:.0f} MiB\n"


def test_unload_of_one_model_leaves_the_others(gpud: RealDaemon) -> None:
    """Only the named one goes; an alias names it too."""
    gpud.place.gpudctl("load", "tiny", "other:3b")
    assert re.fullmatch(r"unloaded 1 model, freed \d+ MiB\n", gpud.place.gpudctl("unload", "small").stdout)
    assert gpud.place.gpudctl("models", "--loaded").stdout == "other:3b\n"


def test_nothing_to_unload_is_no_error(gpud: RealDaemon) -> None:
    """It says so, with status 0: for all, for a name, and for scripts."""
    for words in (("unload",), ("unload", "--all"), ("unload", "tiny")):
        done = gpud.place.gpudctl(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "nothing loaded\n", "")
    nothing = {"unloaded": [], "freed_bytes": 0, "called_off": [], "stay_away": []}
    assert gpud.place.json("unload") | {"results": []} == nothing | {"results": []}


def test_a_load_that_is_called_off_frees_nothing(gpud: RealDaemon) -> None:
    """Unloading a model that was being loaded ends the load, and its waiter is told who did it."""
    loading = gpud.place.start("load", "slow")
    until_it_says(loading, "slow: loading\n")
    data = gpud.place.json("unload", "slow")
    assert (data["unloaded"], data["freed_bytes"] < 100 << 20) == (["slow"], True)
    status, _, err = finish(loading)
    assert status == 1
    assert "unloaded by" in err


# run, wait, reset ----------------------------------------------------------------------------------------------------


def test_run_holds_the_model_while_the_command_runs(gpud: RealDaemon, tmp_path: Path) -> None:
    """The model is loaded before and held during the command, refused to others, and released after it."""
    go = tmp_path / "go"
    os.mkfifo(go)
    running = gpud.place.start(
        "run", "--hold", "small", "--why", "night run", "--", "sh", "-c", f"echo on; cat {go}; exit 7"
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "on\n"
    assert re.search(r'^hold on "tiny" by gpudctl run for \d+s: night run$', gpud.place.gpudctl("status").stdout, re.M)
    refused = gpud.place.gpudctl("unload", "tiny")
    assert refused.returncode == 4
    assert refused.stderr.startswith('gpudctl: "tiny" is held by gpudctl run; ')
    everything = gpud.place.gpudctl("unload")
    assert (everything.returncode, everything.stdout) == (0, "")
    assert "not unloaded" in everything.stderr
    go.write_text("")
    assert finish(running)[0] == 7
    assert gpud.place.json("status")["holds"] == []


def test_force_unloads_what_others_hold(gpud: RealDaemon, tmp_path: Path) -> None:
    """The model goes, the command that runs with it goes on to its end."""
    go = tmp_path / "go"
    os.mkfifo(go)
    running = gpud.place.start("run", "--hold", "tiny", "--", "sh", "-c", f"echo on; cat {go}")
    assert running.stdout is not None
    assert running.stdout.readline() == "on\n"
    assert gpud.place.gpudctl("unload", "--force", "tiny").returncode == 0
    go.write_text("")
    assert finish(running)[0] == 0


def test_run_passes_signals_on(gpud: RealDaemon, tmp_path: Path) -> None:
    """TERM ends the command, and the status says so as a shell would."""
    os.mkfifo(tmp_path / "never")
    running = gpud.place.start("run", "--hold", "tiny", "--", "sh", "-c", f"echo on; exec cat {tmp_path / 'never'}")
    assert running.stdout is not None
    assert running.stdout.readline() == "on\n"
    running.terminate()
    assert finish(running)[0] == 128 + signal.SIGTERM


def test_run_of_no_such_command_loads_nothing(gpud: RealDaemon) -> None:
    """127 as a shell says it, and no model was loaded in vain."""
    done = gpud.place.gpudctl("run", "--hold", "tiny", "--", "no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        'gpudctl: cannot run "no-such-program": there is no such command; no model was loaded for it\n',
    )
    assert state_of(gpud, "tiny") == "unloaded"


def test_run_does_not_start_the_command_without_its_model(gpud: RealDaemon, tmp_path: Path) -> None:
    """A model that cannot be loaded is an error before anything was run."""
    proof = tmp_path / "proof"
    done = gpud.place.gpudctl("run", "--hold", "big", "--", "touch", str(proof))
    assert done.returncode == 1
    assert '"touch" was not started' in done.stderr
    assert not proof.exists()


def test_wait_returns_when_the_model_is_ready(gpud: RealDaemon) -> None:
    """It returns with the model, and at once for one that is ready already."""
    gpud.place.gpudctl("load", "--no-wait", "slow")
    with open_dbus_connection(gpud.place.environment["DBUS_SESSION_BUS_ADDRESS"]) as monitor:
        rules = [f"type='method_return',sender='{NAME}'"]
        monitor.send_and_get_reply(new_method_call(MONITORING, "BecomeMonitor", "asu", (rules, 0)), timeout=PATIENCE_S)
        waiting = gpud.place.start("wait", "slow")
        # It has been told that the model is not ready yet.
        while monitor.receive(timeout=PATIENCE_S).header.fields.get(HeaderFields.signature) != "a{sv}":
            pass
    gpud.open_gate()
    assert finish(waiting) == (0, '"slow" is ready\n', "")
    assert gpud.place.gpudctl("wait", "slow").stdout == '"slow" is ready\n'


def test_wait_returns_when_the_model_is_unloaded(gpud: RealDaemon) -> None:
    """The other direction; failed counts, for it holds nothing."""
    gpud.place.gpudctl("load", "tiny")
    waiting = gpud.place.start("wait", "--state", "unloaded", "small")
    gpud.place.gpudctl("unload", "tiny")
    assert finish(waiting) == (0, '"tiny" is unloaded\n', "")


def test_wait_gives_up_in_time(gpud: RealDaemon) -> None:
    """Status 1 and where the model stands."""
    done = gpud.place.gpudctl("wait", "tiny", "--timeout", "100ms")
    assert done.returncode == 1
    assert done.stderr.startswith('gpudctl: "tiny" is still unloaded after')


def test_reset_forgets_failures(gpud: RealDaemon) -> None:
    """A failed model is unloaded again; one that has not failed is left alone, in friendly words."""
    gpud.place.gpudctl("load", "broken")
    assert state_of(gpud, "broken") == "failed"
    done = gpud.place.gpudctl("reset", "broken")
    assert (done.returncode, done.stdout.startswith('reset "broken"')) == (0, True)
    assert state_of(gpud, "broken") == "unloaded"
    assert gpud.place.gpudctl("reset", "broken").stdout == '"broken" had not failed: nothing to reset\n'
    gpud.place.gpudctl("load", "tiny")
    refused = gpud.place.gpudctl("reset", "tiny")
    assert (refused.returncode, state_of(gpud, "tiny")) == (1, "ready")
    assert "it is ready, not failed" in refused.stderr


def test_reset_of_an_engine_is_for_all_of_it_that_has_failed(gpud: RealDaemon) -> None:
    """What is loaded stays as it is; where nothing has failed that is said, and an unknown name resets nothing."""
    gpud.place.gpudctl("load", "broken", "tiny")
    before = gpud.place.json("status", "tiny")["pid"]
    refused = gpud.place.gpudctl("reset", "broken", "tini")
    assert (refused.returncode, state_of(gpud, "broken")) == (1, "failed")
    assert 'cannot reset "tini": no engine is called so' in refused.stderr
    assert gpud.place.json("reset", "custom") == {"reset": ["broken"], "unchanged": []}
    assert (state_of(gpud, "broken"), gpud.place.json("status", "tiny")["pid"]) == ("unloaded", before)
    done = gpud.place.gpudctl("reset", "custom")
    assert (done.returncode, done.stdout) == (0, "no model of custom has failed: nothing to reset\n")


def test_a_failed_model_says_why_and_when_it_is_tried_again(gpud: RealDaemon) -> None:
    """status has the error, the advice and the next attempt, where there will be one: after a crash, not after a load
    that failed."""
    gpud.place.gpudctl("load", "broken")
    text = gpud.place.gpudctl("status").stdout
    assert re.search(r"^broken: cannot load .*status 1", text, re.M)
    assert re.search(r"^  not tried again by itself", text, re.M)
    assert gpud.place.gpudctl("wait", "broken").returncode == 1
    gpud.place.gpudctl("reset", "broken")
    gpud.place.gpudctl("load", "tiny")
    os.kill(gpud.place.json("status", "tiny")["pid"], signal.SIGKILL)
    gpud.place.gpudctl("wait", "--state", "unloaded", "tiny")
    text = gpud.place.gpudctl("status").stdout
    assert re.search(r"^tiny: the engine was ended by signal 9$", text, re.M)
    assert re.search(r"^  attempt 2 in (\d+s|1m)$", text, re.M)


# reload, version, the daemon's end -----------------------------------------------------------------------------------


def test_reload_takes_a_new_configuration_or_none_of_it(gpud: RealDaemon) -> None:
    """A wrong one is refused on one line with status 1, and the old one stays."""
    good = gpud.config.read_text()
    try:
        gpud.config.write_text(good + "  more: {engine: custom, url: 'http://127.0.0.1:1', size: 1MiB}\n")
        done = gpud.place.gpudctl("reload")
        assert (done.returncode, done.stdout) == (0, "reloaded: 6 models\n")
        gpud.config.write_text(good + "nonsense: 1\n")
        done = gpud.place.gpudctl("reload")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "nonsense" in done.stderr
        assert len(gpud.place.json("models")["models"]) == 6
    finally:
        gpud.config.write_text(good)
        gpud.place.gpudctl("reload")


def test_version_asks_the_daemon_where_it_is_told_to(gpud: RealDaemon) -> None:
    """Both versions, and the bus."""
    text = gpud.place.gpudctl("version", "--daemon").stdout
    assert text == "gpudctl 0.1.0\ngpud 0.1.0 (running, on the session bus)\n"


def test_colors_only_where_they_show(gpud: RealDaemon) -> None:
    """None in a pipe; on a terminal unless NO_COLOR or --no-color is there."""
    assert "\x1b" not in gpud.place.gpudctl("status").stdout
    assert "\x1b[" in on_a_terminal(gpud, "status")
    assert "\x1b" not in on_a_terminal(gpud, "status", "--no-color")
    assert "\x1b" not in on_a_terminal(gpud, "status", NO_COLOR="1")


def on_a_terminal(gpud: RealDaemon, *words: str, **more: str) -> str:
    ours, theirs = pty.openpty()
    environment = gpud.place.environment | {"TERM": "xterm"} | more
    try:
        process = subprocess.Popen([*GPUDCTL, *words], env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = read_until(ours, lambda text: "available" in text)
        assert process.wait(PATIENCE_S) == 0
    finally:
        os.close(ours)
    return seen


def test_a_reader_that_has_seen_enough(gpud: RealDaemon) -> None:
    """Output into a closed pipe ends quietly."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        process = gpud.place.start("status", stdout=theirs)
    finally:
        os.close(theirs)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (141, "")
