"""What is left when something dies: gpud, an engine, polkit, the watchdog's patience."""

import json
import re

import pytest
from booted_machine import COMMAND_S, Machine

from gpud.core.events import Kind
from gpud.log import MESSAGE_IDS

pytestmark = pytest.mark.booted

TOKENS = 2000
"""An answer of many times what a pipe holds: its writer waits for as long as the reader does not read."""


def came_back(machine: Machine, restarts: int) -> None:
    machine.wait(
        "the restarted gpud",
        f'test "$(systemctl show --value --property=NRestarts gpud)" -gt {restarts} && systemctl is-active gpud',
    )


def test_engines_outlive_the_death_of_gpud(machine: Machine) -> None:
    """After ``kill -9`` with two models loaded and an answer being written, the next gpud takes both over as they are:
    the same processes, nothing loaded again, the answer uncut; how soon is told by the bench."""
    machine.load("tiny", "small")
    before = machine.engines()
    record = json.loads(machine.run("cat /run/gpud/engines/tiny-*.json").out)["endpoint"]
    body = json.dumps({"prompt": "once", "stream": True, "max_tokens": TOKENS})
    request = (
        f"curl --silent --show-error --no-buffer --unix-socket {record['socket']} "
        f"-H 'Authorization: Bearer {record['key']}' -H 'Content-Type: application/json' "
        f"-d '{body}' http://engine/v1/completions"
    )
    with machine.start(request) as answer:
        assert answer.stdout is not None
        assert answer.stdout.readline().startswith("data: ")
        for _ in range(3):
            restarts = int(machine.show("gpud", "NRestarts"))
            machine.run(f"kill -9 {machine.main_pid()}")
            came_back(machine, restarts)
            assert machine.engines() == before
            assert {name for name, state in machine.states().items() if state == "ready"} == {"tiny", "small"}
        assert answer.poll() is None, "the answer ended too early to show anything"
        text = answer.communicate(timeout=COMMAND_S)[0]
    assert answer.returncode == 0
    assert text.rstrip().endswith("data: [DONE]")
    assert "error" not in text
    assert '"finish_reason":"length"' in text
    assert machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.MODEL_ADOPTED]} GPUD_MODEL=small --lines=1")
    machine.run("gpudctl unload --all")
    assert machine.engines() == {}
    assert machine.show("gpud", "NFileDescriptorStore") == "0"


def test_a_hanging_gpud_is_restarted_by_the_watchdog(machine: Machine) -> None:
    """A stopped process feeds no watchdog: systemd ends it, and the next one takes the models over."""
    folder = "/run/systemd/system/gpud.service.d"
    machine.run(f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=2\\n' > {folder}/watchdog.conf")
    machine.run("systemctl daemon-reload && systemctl restart gpud")
    try:
        machine.load("tiny")
        before = machine.engines()
        restarts = int(machine.show("gpud", "NRestarts"))
        machine.run(f"kill -STOP {machine.main_pid()}")
        came_back(machine, restarts)
        assert machine.engines() == before
        assert machine.states()["tiny"] == "ready"
        assert "Watchdog timeout" in machine.journal()
    finally:
        machine.run(f"rm -r {folder} && systemctl daemon-reload && systemctl restart gpud")


def test_the_reaper_ends_nothing_while_gpud_is_about_to_be_started_again(machine: Machine) -> None:
    """From systemd 254 on it is started between two lives of gpud too: engines are the next one's to take over."""
    folder = "/run/systemd/system/gpud.service.d"
    machine.run(f"mkdir -p {folder} && printf '[Service]\\nRestartSec=1h\\n' > {folder}/late.conf")
    machine.run("systemctl daemon-reload")
    try:
        machine.load("tiny", "stubborn")
        before = machine.engines()
        machine.run(f"kill -9 {machine.main_pid()}")
        machine.wait("the time between", 'test "$(systemctl show --value --property=SubState gpud)" = auto-restart')
        machine.run("systemctl start gpud-reap")
        assert machine.engines() == before
        machine.run("systemctl restart gpud")
        assert machine.engines() == before
        assert machine.states()["tiny"] == machine.states()["stubborn"] == "ready"
    finally:
        machine.run(f"rm -r {folder} && systemctl daemon-reload && systemctl restart gpud")


def test_an_engines_death_is_not_gpuds(machine: Machine) -> None:
    """An engine that is killed is reported as crashed and started again; the service itself never restarts."""
    machine.load("tiny")
    (engine,) = machine.engines()
    machine.run(f"kill -9 {engine}")
    machine.wait(
        "the crash in the journal",
        f"journalctl MESSAGE_ID={MESSAGE_IDS[Kind.ENGINE_CRASHED]} GPUD_MODEL=tiny | grep -q 'signal 9'",
    )
    machine.run("gpudctl load tiny")
    assert engine not in machine.engines()
    assert machine.show("gpud", "NRestarts") == "0"


def test_what_an_engine_leaves_behind_is_ended(machine: Machine) -> None:
    """When the main process of an engine is killed, the child that it forked into a session of its own goes too."""
    machine.load("stubborn")
    assert len(machine.engines()) == 2
    main = json.loads(machine.run("cat /run/gpud/engines/stubborn-*.json").out)["child"]["pid"]
    machine.run(f"kill -9 {main}")
    machine.wait(
        "the end of what it left",
        "! grep -qs . /sys/fs/cgroup/system.slice/gpud.service/engine-stubborn-*/cgroup.procs",
    )
    machine.run("gpudctl reset stubborn", check=False)


def test_when_restarts_are_exhausted_the_reaper_gives_the_memory_back(machine: Machine) -> None:
    """A gpud that dies again and again is given up by systemd; then no engine may stay, not even a stubborn one."""
    machine.load("tiny", "stubborn")
    assert len(machine.engines()) == 3
    # So often within a minute is too often; how long it takes here is not what this is about.
    folder = "/run/systemd/system/gpud.service.d"
    machine.run(f"mkdir -p {folder} && printf '[Unit]\\nStartLimitIntervalSec=1h\\n' > {folder}/slow.conf")
    machine.run("systemctl daemon-reload")
    try:
        for _ in range(20):
            machine.wait("gpud or its failure", "systemctl is-active gpud || systemctl is-failed gpud")
            if machine.show("gpud", "ActiveState") == "failed":
                break
            # Between two lives, which systemd may just be at, there is nobody to kill, or nobody any more.
            if pid := machine.main_pid():
                machine.run(f"kill -9 {pid}", check=False)
        assert machine.show("gpud", "ActiveState") == "failed"
    finally:
        machine.run(f"rm -r {folder} && systemctl daemon-reload")
    machine.wait("the end of the engines", "! ps --user gpud -o args=")
    machine.wait(
        "the end of the reaper", 'test "$(systemctl show --value --property=ActiveState gpud-reap)" = inactive'
    )
    assert machine.show("gpud-reap", "Result") == "success"
    assert machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.LEFTOVER_ENDED]} GPUD_MODEL=stubborn --lines=1")
    machine.run("systemctl reset-failed gpud && systemctl start gpud")
    assert set(machine.states().values()) == {"unloaded"}


def test_the_death_of_polkit_opens_nothing(machine: Machine) -> None:
    """With polkit killed a stranger is refused as before, root is served, and gpud does not hang."""
    machine.call("Load", "s", "tiny", user="nobody", check=False)
    machine.run("kill -9 $(systemctl show --value --property=MainPID polkit)")
    refused = machine.call("Load", "s", "tiny", user="nobody", check=False)
    assert refused.code != 0
    assert machine.states()["tiny"] == "unloaded"
    machine.load("tiny")


def test_a_restarted_journal_gets_the_next_message(machine: Machine) -> None:
    """``systemctl restart systemd-journald`` stops nobody, and what gpud says afterwards arrives."""
    machine.run("systemctl restart systemd-journald")
    machine.load("small")
    loaded = f"MESSAGE_ID={MESSAGE_IDS[Kind.MODEL_LOADED]} GPUD_MODEL=small"
    machine.wait("the message", f"journalctl --since=-30s {loaded} | grep -q ready")


def test_the_journal_explains_what_happened(machine: Machine) -> None:
    """``journalctl -x`` by model shows each message with its explanation; fields and identifiers are as documented."""
    machine.load("tiny")
    machine.run("journalctl --sync")
    explained = machine.run("journalctl --unit=gpud GPUD_MODEL=tiny --catalog --no-pager").out
    assert "Subject: Model tiny is loaded" in explained
    assert re.search(r'"gpudctl unload tiny"', explained)
    (loaded,) = machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.MODEL_LOADED]} GPUD_MODEL=tiny --lines=1")
    assert loaded["GPUD_KIND"] == "model-loaded"
    assert loaded["SYSLOG_IDENTIFIER"] == "gpud"
    assert loaded["_SYSTEMD_UNIT"] == "gpud.service"
    (line,) = machine.entries("--identifier=gpud-embedded GPUD_MODEL=tiny --lines=1")
    assert line["GPUD_ENGINE"] == "embedded"
    assert int(line["GPUD_PID"]) in machine.engines()


def test_engines_are_first_to_go_when_memory_is_short(machine: Machine) -> None:
    """The kernel's out-of-memory killer prefers an engine to gpud."""
    machine.load("tiny")
    (engine,) = machine.engines()
    own, theirs = (int(machine.run(f"cat /proc/{pid}/oom_score_adj").out) for pid in (machine.main_pid(), engine))
    assert own < theirs
