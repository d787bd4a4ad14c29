"""Units with old names on a real Debian: their status, their journal, and what stopping and starting them does."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from booted_machine import TOP, Machine, provision

pytestmark = pytest.mark.booted

NAMES = "llamacpp llamacpp-turbo ollama ollama-gpu-idle-monitor ml-offload-api ml-vram-monitor"
ALIVE = "curl --silent --fail --output /dev/null http://127.0.0.1:9000/health"
FRONT = "curl --silent --fail --output /dev/null http://127.0.0.1:8080/health"


@pytest.fixture(scope="module")
def with_names(installed: Machine) -> Machine:
    """The machine after ``make install FACADES=1``, which puts the units there and enables none."""
    installed.run("make --directory=/src install WHEELS=/wheels FACADES=1", timeout_s=300)
    assert "enabled" not in installed.run(f"systemctl is-enabled {NAMES}", check=False).out.split()
    installed.run("systemctl restart gpud")
    return installed


@pytest.fixture
def facades(with_names: Machine, machine: Machine) -> Iterator[Machine]:
    """gpud running with nothing loaded, no unit with an old name started, and none refused."""
    yield machine
    machine.run(f"systemctl stop {NAMES}; systemctl reset-failed {NAMES}", check=False)
    machine.run("rm -f /run/gpud/facades/*.stopped /run/gpud/facades/*.again")
    assert with_names is machine
    groups = "/sys/fs/cgroup/system.slice/gpud.service/engine-*/cgroup.procs"
    machine.run("gpudctl unload --all --force", check=False)
    machine.wait("the end of every engine", f"! cat {groups} 2>/dev/null | grep -q .")


def engine_of(machine: Machine, model: str) -> int:
    return int(machine.run(f"pgrep --uid gpud --full 'alias {model} '").out)


def said(machine: Machine, unit: str, since: str) -> list[str]:
    """By the programs of a unit, since a moment."""
    machine.run("journalctl --sync")
    return [entry["MESSAGE"] for entry in machine.entries(f"_SYSTEMD_UNIT={unit}.service --since={since}")]


def status_becomes(machine: Machine, unit: str, pattern: str) -> None:
    machine.wait(f"the status of {unit}", f"systemctl show --value --property=StatusText {unit} | grep -qE '{pattern}'")


def test_the_status_names_model_and_memory(facades: Machine) -> None:
    """``systemctl status llamacpp`` is active, and says which model is ready and how much it takes."""
    facades.run("systemctl start llamacpp llamacpp-turbo")
    status_becomes(facades, "llamacpp", "^nothing loaded$")
    facades.load("tiny")
    for unit in ("llamacpp", "llamacpp-turbo"):
        status_becomes(facades, unit, "^ready: tiny [0-9]+ MiB$")
        shown = facades.run(f"systemctl --no-pager status {unit}").out
        assert "Active: active (running)" in shown
        assert 'Status: "ready: tiny ' in shown
    facades.run("gpudctl unload tiny")
    status_becomes(facades, "llamacpp", "^nothing loaded$")


def test_the_journal_has_the_lines_of_that_engine(facades: Machine) -> None:
    """By unit and by identifier: the engine's own lines, and what gpud says of its models; none of other engines."""
    facades.run("systemctl start llamacpp ollama")
    began = facades.now()
    facades.load("tiny")
    for how in ("-xeu llamacpp", "-t llamacpp", "--unit=llamacpp"):
        facades.wait("the engine's lines", f"journalctl --no-pager {how} --since={began} | grep -q 'model loaded'")
        facades.wait("gpud's words", f"""journalctl --no-pager {how} --since={began} | grep -q '"tiny" is ready'""")
    assert "llama" not in facades.run(f"journalctl --no-pager --quiet --unit=ollama --since={began}").out
    # gpud's own journal has them, too, with their fields.
    assert facades.entries(f"--unit=gpud GPUD_MODEL=tiny GPUD_ENGINE=embedded --since={began}")


def test_a_restart_loads_the_same_models_with_new_processes(facades: Machine) -> None:
    """The engine's processes are new ones, the old ones were gone before, and no other engine was touched."""
    facades.run("systemctl start llamacpp")
    facades.load("tiny", "small", "stubborn")
    before = {model: engine_of(facades, model) for model in ("tiny", "small")}
    others = {pid for pid, group in facades.engines().items() if "stubborn" in group}
    began = facades.now()
    facades.run("systemctl restart llamacpp")
    for model, pid in before.items():
        facades.run(f"gpudctl wait {model}")
        assert engine_of(facades, model) != pid
    assert {pid for pid, group in facades.engines().items() if "stubborn" in group} == others
    assert facades.states()["stubborn"] == "ready"
    kinds = [
        entry["GPUD_KIND"]
        for entry in facades.entries(f"--unit=gpud --since={began}")
        if entry.get("GPUD_KIND") in ("model-unloaded", "load-started", "model-loaded")
    ]
    assert kinds[:2] == ["model-unloaded", "model-unloaded"]
    assert sorted(kinds[2:]) == ["load-started", "load-started", "model-loaded", "model-loaded"]


def test_a_stop_unloads_and_refuses_until_a_start(facades: Machine) -> None:
    """Also over a restart of gpud; the refusal names the unit and what to do. Other engines are loaded as ever."""
    facades.run("systemctl start llamacpp")
    facades.load("tiny")
    began = facades.now()
    facades.run("systemctl stop llamacpp")
    assert facades.states()["tiny"] == "unloaded"
    assert "unloaded: tiny" in said(facades, "llamacpp", began), "it waits for gpud, and is told what has gone"
    for _ in range(2):
        refused = facades.run("gpudctl load tiny", check=False)
        assert refused.code != 0
        assert '"llamacpp.service" was stopped' in refused.err
        assert "systemctl start llamacpp" in refused.err
        facades.load("stubborn")
        facades.run("systemctl restart gpud")
    facades.run("systemctl start llamacpp")
    facades.run("gpudctl wait tiny")
    assert facades.states() == {"tiny": "ready", "small": "unloaded", "stubborn": "unloaded"}


def test_a_stop_without_gpud_is_heeded_later(facades: Machine) -> None:
    """Stopping does not wait for a gpud that is not there, nor start it, and the next one refuses."""
    facades.run("systemctl start llamacpp && systemctl stop gpud")
    status_becomes(facades, "llamacpp", "^gpud does not run: systemctl start gpud$")
    began = facades.now()
    facades.run("systemctl stop llamacpp")
    words = "gpud does not run; it will refuse what llamacpp stands for until llamacpp is started"
    assert words in said(facades, "llamacpp", began)
    assert facades.show("gpud", "ActiveState") == "inactive"
    facades.run("systemctl start gpud")
    assert facades.run("gpudctl load tiny", check=False).code != 0
    facades.run("systemctl start llamacpp")
    facades.load("tiny")


def test_it_outlives_a_crash_of_gpud_and_gpud_a_crash_of_it(facades: Machine) -> None:
    """Both are there again by themselves, nothing is unloaded, and the status goes on."""
    facades.run("systemctl start llamacpp")
    facades.load("tiny")
    engine, shell = engine_of(facades, "tiny"), facades.show("llamacpp", "MainPID")
    facades.run(f"kill -9 {facades.main_pid()}")
    facades.wait("gpud", "gpudctl wait --timeout 5 tiny")
    assert facades.show("llamacpp", "MainPID") == shell
    facades.run(f"kill -9 {shell}")
    facades.wait("the unit", f"pid=$(systemctl show --value -p MainPID llamacpp); test $pid -gt 0 -a $pid -ne {shell}")
    status_becomes(facades, "llamacpp", "^ready: tiny [0-9]+ MiB$")
    assert engine_of(facades, "tiny") == engine
    facades.run("gpudctl unload tiny")
    status_becomes(facades, "llamacpp", "^nothing loaded$")


def test_the_api_is_closed_and_opened_without_touching_models(facades: Machine) -> None:
    """``ml-offload-api``: stopping it closes the management API alone, restarting keeps every engine's process."""
    facades.run("systemctl start ml-offload-api")
    facades.load("tiny")
    engine = engine_of(facades, "tiny")
    facades.run("systemctl restart ml-offload-api")
    facades.wait("the API", ALIVE)
    began = facades.now()
    facades.run("systemctl stop ml-offload-api")
    assert "the door management is closed" in said(facades, "ml-offload-api", began)
    assert facades.run(ALIVE, check=False).code == 7, "nobody listens"
    facades.run(FRONT)
    facades.run("systemctl reload gpud")
    assert facades.run(ALIVE, check=False).code == 7, "a new configuration does not open it"
    facades.run("systemctl start ml-offload-api")
    facades.wait("the API", ALIVE)
    assert engine_of(facades, "tiny") == engine
    facades.wait("the door's words", "journalctl --no-pager -xeu ml-offload-api | grep -q 'Listens on 127.0.0.1:9000'")


BROKEN = """\
models:
  broken: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/broken.gguf, size: 64MiB}
  away: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/away.gguf}
"""

INTRUDER = "import signal, socket; s = socket.create_server(('127.0.0.1', 9000)); print(1, flush=True); signal.pause()"


def test_what_does_not_start_is_explained(facades: Machine) -> None:
    """By the three commands that people type: the unit's status, its journal with the engine's own last lines, and
    gpudctl doctor, which names the file that is missing, and the port with whoever has it.
    """
    store, extra = "/var/lib/ml-models/llamacpp/models", "/etc/gpud/gpud.d/broken.yaml"
    (facades.root / extra[1:]).write_text(BROKEN)
    facades.run(f"head -c 4000 {store}/tiny.gguf >{store}/broken.gguf; systemctl start llamacpp; systemctl stop gpud")
    intruder = f'/usr/bin/python3 -c "{INTRUDER}"'
    try:
        with facades.start(intruder) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "1\n"
            began = facades.now()
            facades.run("systemctl start gpud")
            refused = facades.run("gpudctl load broken", check=False)
            assert refused.code != 0
            status_becomes(facades, "llamacpp", "^failed: broken$")
            shown = facades.run("systemctl --no-pager status llamacpp").out
            assert 'Status: "' in shown and "broken" in shown
            journal = facades.run(f"journalctl --no-pager -xeu llamacpp --since={began}").out
            assert re.search(r'Loading "broken" failed', journal), journal
            doctor = facades.run("gpudctl doctor", check=False)
            assert doctor.code != 0
            assert re.search(r"^PROBLEM model: .*away\.gguf.* — ", doctor.out, re.M), doctor.out
            assert re.search(r"^PROBLEM port: http\.management: .* 9000 .*python3.* — ", doctor.out, re.M), doctor.out
    finally:
        facades.run(f"rm -f {extra} {store}/broken.gguf; systemctl restart gpud")
    facades.wait("the API", ALIVE)


def test_the_monitors_show_what_they_were_there_for(facades: Machine) -> None:
    """The idle monitor's status has the time, its journal what was unloaded for it; the VRAM monitor has the memory."""
    facades.run("systemctl start ollama-gpu-idle-monitor ml-vram-monitor")
    status_becomes(facades, "ollama-gpu-idle-monitor", "^idle timeout 300s")
    status_becomes(facades, "ml-vram-monitor", "MiB used$")
    facades.load("tiny")
    facades.call("SetIdleTimeout", "t", "100000")
    try:
        facades.wait("the idle model", "journalctl --no-pager -xeu ollama-gpu-idle-monitor | grep -q '\"tiny\"'")
    finally:
        facades.run("systemctl reload gpud")


def test_the_scan_is_done_by_its_old_names(facades: Machine) -> None:
    """The service looks for models and ends well; its timer can be enabled."""
    facades.run("systemctl start ml-registry-scan.service")
    assert facades.show("ml-registry-scan", "Result") == "success"
    facades.run("systemctl enable --now ml-registry-scan.timer && systemctl disable --now ml-registry-scan.timer")


def test_a_waiting_facade_is_small_and_sleeps(facades: Machine) -> None:
    """It is one shell of less than half a megabyte of its own, which is not woken while nothing happens."""
    facades.run("systemctl start llamacpp")
    pid = facades.show("llamacpp", "MainPID")
    count = f"grep ctxt_switches /proc/{pid}/status"
    facades.wait("a quiet facade", f'a=$({count}); sleep 2; test "$a" = "$({count})"')
    assert facades.run("cat /sys/fs/cgroup/system.slice/llamacpp.service/cgroup.procs").out == pid
    own = facades.run(f"awk '/^Private/ {{ sum += $2 }} END {{ print sum }}' /proc/{pid}/smaps_rollup").out
    assert int(own) < 512


def test_the_places_of_the_documentation_are_there(facades: Machine) -> None:
    """The table of where gpud lives names what is installed, and nothing else."""
    table = re.findall(r"^\|.*\|$", (TOP / "docs/operations.md").read_text().split("| what | where |")[1], re.MULTILINE)
    places = [place for row in table[:10] for place in re.findall(r"`(/[^`*]+)", row)]
    assert len(places) >= 12
    for place in places:
        assert facades.run(f"test -e {place.removesuffix('/')}", check=False).code == 0, place


def test_the_units_are_well_formed(facades: Machine) -> None:
    """systemd has nothing to say against any of them."""
    units = " ".join(f"{name}.service" for name in NAMES.split())
    facades.run(f"systemd-analyze --man=no verify {units} ml-registry-scan.service ml-registry-scan.timer")
    user = "XDG_RUNTIME_DIR=/run systemd-analyze --man=no --user verify"
    facades.run(f"{user} /usr/lib/systemd/user/llama-cpp-server.service")


def test_a_unit_of_somebody_elses_is_named_and_nothing_installed(facades: Machine) -> None:
    """Where the real unit is, the installation ends before it has changed anything, and says what to do."""
    theirs = "/etc/systemd/system/ollama.service"
    facades.run(f"printf '[Service]\\nExecStart=/usr/local/bin/ollama serve\\n' >{theirs}")
    try:
        before = facades.run("stat -c %Z /opt/gpud /usr/lib/gpud/facade").out
        refused = facades.run("make --directory=/src install WHEELS=/wheels FACADES=1", check=False)
        assert refused.code != 0
        assert f"{theirs} is a unit of its own" in refused.err
        assert "systemctl disable --now ollama" in refused.err
        wrong = facades.run("make --directory=/src install WHEELS=/wheels FACADES=lamacpp", check=False)
        assert "old name lamacpp: there are llama-cpp-server llamacpp " in wrong.err
        assert facades.run("stat -c %Z /opt/gpud /usr/lib/gpud/facade").out == before
    finally:
        facades.run(f"rm {theirs}")


def test_the_pipe_is_full_and_nothing_waits(facades: Machine) -> None:
    """A facade that does not read holds up neither loads nor their lines in gpud's own journal."""
    facades.run("systemctl start llamacpp")
    pid = int(facades.show("llamacpp", "MainPID"))
    facades.run(f"kill -STOP {pid}")
    try:
        for _ in range(3):
            facades.load("tiny")
            facades.run("gpudctl unload tiny")
    finally:
        facades.run(f"kill -CONT {pid}")
    status_becomes(facades, "llamacpp", "^nothing loaded$")


# Ollama itself -------------------------------------------------------------------------------------------------------

OLLAMA = """\
engines:
  ollama:
    binary: /opt/ollama/bin/ollama
    models_dir: /var/lib/ml-models/ollama/models
models:
  llama:
    engine: ollama
    model: tiny
    threads: 1
"""

CREATE = """\
cd /var/lib/ml-models/ollama && export HOME=$PWD OLLAMA_MODELS=$PWD/models OLLAMA_HOST=127.0.0.1:11999 OLLAMA_NO_CLOUD=1
/opt/ollama/bin/ollama serve >/dev/null 2>&1 & server=$!
until /opt/ollama/bin/ollama list >/dev/null 2>&1; do sleep 0.1; done
/opt/ollama/bin/ollama create tiny -f Modelfile; status=$?
kill $server; wait $server; exit $status
"""


@pytest.fixture(scope="module")
def with_ollama(with_names: Machine) -> Iterator[Machine]:
    """The machine with Ollama, a model that ``ollama create`` has made, and gpud told of both."""
    place = with_names.root / "opt/ollama"
    shutil.copytree(provision("ollama"), place, symlinks=True)
    store = with_names.root / "var/lib/ml-models/ollama"
    maker = [sys.executable, str(TOP / "tests/tiny_model.py"), str(store / "tiny.gguf"), "--name", "tiny"]
    subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
    (store / "Modelfile").write_text("FROM ./tiny.gguf\n")
    with_names.run("chmod -R a+rX /opt/ollama; chown -R gpud:gpud /var/lib/ml-models/ollama")
    with_names.run(CREATE, user="gpud")
    configuration = with_names.root / "etc/gpud/gpud.d/ollama.yaml"
    configuration.write_text(OLLAMA)
    with_names.run("systemctl reload gpud")
    yield with_names
    with_names.run("gpudctl unload --all --force", check=False)
    configuration.unlink()
    with_names.run("systemctl reload gpud; rm -rf /opt/ollama", check=False)


def runner_of(machine: Machine) -> int:
    """The process of Ollama's that holds the model."""
    return int(machine.run("gpudctl status --json llama | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'").out)


@pytest.mark.engines
def test_ollamas_own_lines_and_memory_are_those_of_its_unit(with_ollama: Machine, facades: Machine) -> None:
    """``journalctl -xeu ollama`` has what Ollama and its runner say, the status model and MiB; llamacpp has neither."""
    facades.run("systemctl start ollama llamacpp")
    began = facades.now()
    facades.load("llama")
    status_becomes(facades, "ollama", "^ready: llama [0-9]+ MiB$")
    assert 'Status: "ready: llama ' in facades.run("systemctl --no-pager status ollama").out
    for words in ("Listening on 127.0.0.1", "llama_model_loader", '"llama" is ready'):
        facades.wait(words, f"journalctl --no-pager -xeu ollama --since={began} | grep -qF '{words}'")
    facades.run("systemctl stop llamacpp")
    assert "llama_model_loader" not in facades.run(f"journalctl --no-pager -u llamacpp --since={began}").out
    assert facades.states()["llama"] == "ready"


@pytest.mark.engines
def test_ollama_is_restarted_stopped_and_started(with_ollama: Machine, facades: Machine) -> None:
    """A restart gives the model a new process and llama.cpp's keep theirs; stopped, only Ollama's are refused."""
    facades.run("systemctl start ollama")
    facades.load("llama", "tiny")
    before, other = runner_of(facades), engine_of(facades, "tiny")
    facades.run("systemctl restart ollama && gpudctl wait --timeout 120s llama")
    assert runner_of(facades) not in (0, before)
    assert facades.run(f"test -e /proc/{before}", check=False).code == 1
    facades.run("systemctl stop ollama")
    assert facades.states()["llama"] == "unloaded"
    refused = facades.run("gpudctl load llama", check=False)
    assert refused.code != 0
    assert '"ollama.service" was stopped' in refused.err
    assert "systemctl start ollama" in refused.err
    assert engine_of(facades, "tiny") == other
    facades.run("systemctl start ollama && gpudctl wait --timeout 120s llama")
    by_command = runner_of(facades)
    facades.run("gpudctl restart ollama")
    assert runner_of(facades) not in (0, by_command)
    assert engine_of(facades, "tiny") == other


# The commands with old names, as installed ---------------------------------------------------------------------------

FOLLOWING = "timeout --foreground 5 "

DAY = (
    ("gpu-status", "tiny +embedded +ready"),
    ("gpu-mem", "Budget:"),
    ("gpu-procs", "Budget:"),
    ("ml-vram", "Budget:"),
    ("ml-vram-status", "Budget:"),
    ("gpu-temp", "no GPU tells how warm it is"),
    ("gpu-report", r"MODEL +ENGINE[\s\S]*Budget:"),
    ("gpu-mode-docker", 'given away until "gpudctl resume"; unloaded 1 model'),
    ("gpu-mode-local", "resumed: the GPUs were given away"),
    ("gpu-mode-auto", "nothing to resume"),
    ("llama-start tiny", 'loaded "tiny"'),
    ("llama-status tiny", "state +ready"),
    ("llama-logs tiny", "gpud-embedded.*llama"),
    ("llama-stop tiny", "unloaded 1 model, freed"),
    ("llama-start", "loaded "),
    ("ollama-status", '"models":\\[{"name":'),
    ("ollama-unload", r"unloaded 1 model, freed \d+ MiB"),
    ("ollama-unload", "nothing loaded"),
    ("ollama-models", '"name":"tiny:latest"'),
    ("ml-models", '"name":"tiny"'),
    ("ml-status", '"backends":'),
    ("ml-backends", '"name":"llamacpp"'),
    ("ml-vllm-status", '"name":"vllm"'),
    ("ml-vllm-health", '"vllm":{"available":false'),
    ("ml-vllm-models", r"^\[\]$"),
    ("ml-offload /vram", '"total_gb":'),
    ("ml-offload-test", '"status":"healthy"'),
    ("ml-offload-api", "Active: active"),
    ("ml-offload-api-log", "Management API of gpud"),
    ("ml-offload-api-restart", "^$"),
    ("ml-registry-scan", "files looked at"),
    ("ml-registry-status", "tiny +embedded +llama"),
    ("ml-registry-log", "There are [0-9]+ models now"),
    ("ml-vram-log", "^$"),
    ("ml-vram-restart", "^$"),
    ("ml-ls", "llamacpp/"),
    ("ml-du", "in all"),
    ("ml-clean-cache --yes", "removed 0 files"),
)
"""Each command with what it says. Nothing has run short of memory on this machine, and it has no GPU."""


def test_every_old_command_does_it_as_installed(facades: Machine) -> None:
    """In the order of a day; those that follow the journal are ended after they have shown what there was."""
    assert {line.split()[0] for line, _ in DAY} == {path.name for path in (TOP / "shell/bin").iterdir()}
    facades.run("systemctl start ml-offload-api ml-vram-monitor")
    facades.load("tiny")
    monitor = facades.show("ml-vram-monitor", "MainPID")
    wrong = []
    for line, words in DAY:
        follows = line.split()[0].endswith(("-log", "-logs"))
        done = facades.run((FOLLOWING if follows else "") + line, check=False)
        if done.code != (124 if follows else 0) or not re.search(words, done.out):
            wrong.append(done.explain())
    assert wrong == []
    assert facades.show("ml-vram-monitor", "MainPID") != monitor
    facades.wait("the API", ALIVE)


def test_without_their_units_the_old_commands_say_what_to_do(facades: Machine) -> None:
    """``ml-offload-api`` shows gpud itself; what could restart nothing says so, with status 1."""
    place = "/usr/lib/systemd/system"
    hidden = "ml-offload-api ml-vram-monitor"
    facades.run(f"cd {place}; for unit in {hidden}; do mv $unit.service $unit.away; done; systemctl daemon-reload")
    try:
        assert "gpud.service" in facades.run("ml-offload-api").out.splitlines()[0]
        for name in ("ml-offload-api-restart", "ml-vram-restart"):
            refused = facades.run(name, check=False)
            assert refused.code == 1
            assert refused.err.startswith(f"{name}: ")
            assert "gpudctl" in refused.err
    finally:
        facades.run(f"cd {place}; for unit in {hidden}; do mv $unit.away $unit.service; done; systemctl daemon-reload")
