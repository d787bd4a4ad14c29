"""The commands that work without the daemon: config, doctor, log, and the parts that doctor is made of."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_place import TOP, Place, RealDaemon

from gpud.cli import examine_engines, examine_machine
from gpud.cli.findings import READ, WRITE, Account, Finding, closed_folder, may
from gpud.config import parse
from gpud.core.vendors import VENDORS

SOMEBODY = Account("somebody", 54321, frozenset({54321}))


@pytest.fixture
def alone(tmp_path: Path) -> Place:
    """No bus at all, and an own configuration."""
    place = Place(tmp_path, {"GPUD_BUS": "user"})
    (tmp_path / "config" / "gpud").mkdir(parents=True)
    return place


def configure(place: Place, text: str) -> Path:
    path = place.directory / "config" / "gpud" / "gpud.yaml"
    path.write_text(text)
    return path


ONE_MODEL = "models: {web: {engine: custom, url: 'http://127.0.0.1:1', size: 1MiB}}\n"

# config --------------------------------------------------------------------------------------------------------------


def test_config_check_of_a_right_file(alone: Place) -> None:
    """OK with the models and the file, status 0; the user's own file is found by itself."""
    path = configure(alone, ONE_MODEL)
    done = alone.gpudctl("config", "check")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"OK: 1 model (web) in {path}\n", "")
    assert alone.json("config", "check", str(path))["models"] == ["web"]


def test_config_check_where_nothing_is_written_yet(alone: Place) -> None:
    """It is right as it is; which file would be read is said, and no file is said to have been."""
    done = alone.gpudctl("config", "check")
    path = alone.directory / "config" / "gpud" / "gpud.yaml"
    warning, verdict = done.stdout.splitlines()
    assert (done.returncode, verdict) == (0, "OK: nothing configured yet")
    assert warning.startswith(f"warning: {path}: does not exist; everything has its default; to configure a model, ")
    assert alone.json("config", "check")["sources"] == []


def test_config_check_counts_the_files_beside_it(alone: Place) -> None:
    """What is laid over the file is read as the daemon reads it."""
    path = configure(alone, ONE_MODEL)
    (path.parent / "gpud.d").mkdir()
    (path.parent / "gpud.d" / "10-more.yaml").write_text(ONE_MODEL.replace("web", "more"))
    assert alone.gpudctl("config", "check").stdout == f"OK: 2 models (web, more) in {path} and 1 file in gpud.d\n"


def test_config_check_says_every_problem(alone: Place) -> None:
    """One line for each, with file and line; status 1."""
    path = configure(alone, "models: {a: {engine: nonsense, size: 1MiB}}\nidel: {timeout: 5}\n")
    done = alone.gpudctl("config", "check")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}:") for line in lines)
    assert done.stderr == "gpudctl: 2 problems; gpud would refuse this configuration\n"
    data = json.loads(alone.gpudctl("config", "check", "--json").stdout)
    assert (data["valid"], len(data["problems"])) == (False, 2)


def test_config_check_of_no_file(alone: Place) -> None:
    """The problem is that there is none, and an example shows what one looks like."""
    done = alone.gpudctl("config", "check", "/nowhere/gpud.yaml")
    assert done.returncode == 1
    assert done.stdout.startswith("/nowhere/gpud.yaml")
    assert "does not exist" in done.stdout


def test_config_check_warns_of_what_is_allowed(alone: Place) -> None:
    """A missing file is no error of the configuration, and still worth a word."""
    configure(alone, "models: {a: {engine: embedded, file: /nowhere/a.gguf}}\n")
    done = alone.gpudctl("config", "check")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("warning: models.a.file: ")


def test_config_show_of_a_key(alone: Place) -> None:
    """The bare value for scripts, wherever the option stands."""
    path = configure(alone, ONE_MODEL + "idle: {timeout: 10m}\n")
    assert alone.gpudctl("config", "show", "idle.timeout").stdout == "600\n"
    assert "url: http://127.0.0.1:1" in alone.gpudctl("config", "show", "--file", str(path), "models.web").stdout
    assert alone.json("config", "show", "models.web")["value"]["engine"] == "custom"


def test_config_show_of_everything_reads_back(alone: Place) -> None:
    """What is shown is a configuration that means the same."""
    configure(alone, ONE_MODEL)
    text = alone.gpudctl("config", "show").stdout
    assert parse(text, "shown").models == parse(ONE_MODEL, "given").models


def test_config_show_of_no_such_key(alone: Place) -> None:
    """The nearest key is named."""
    configure(alone, ONE_MODEL)
    done = alone.gpudctl("config", "show", "idle.timout")
    assert done.returncode == 2
    assert 'did you mean "timeout"?' in done.stderr


# log -----------------------------------------------------------------------------------------------------------------


def fake_journalctl(place: Place) -> None:
    """A journalctl that says how it was called."""
    folder = place.directory / "bin"
    folder.mkdir()
    program = folder / "journalctl"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    program.chmod(0o755)
    place.environment["PATH"] = f"{folder}:{place.environment['PATH']}"


@pytest.mark.skipif(
    not any(any(Path(place).glob("**/*.journal*")) for place in ("/run/log/journal", "/var/log/journal")),
    reason="this machine has no journal",
)
def test_log_becomes_journalctl(alone: Place) -> None:
    """The unit, the model's field, and the options in journalctl's words."""
    fake_journalctl(alone)
    words = ("--system", "log", "tiny", "-f", "-n", "5", "--since", "1 hour ago", "-x")
    assert alone.gpudctl(*words).stdout.splitlines()[1:] == [
        "--unit=gpud",
        "GPUD_MODEL=tiny",
        "--follow",
        "--lines=5",
        "--since=1 hour ago",
        "--catalog",
    ]


def test_the_command_line_of_journalctl() -> None:
    """In user mode it is the user's journal; JSON is journalctl's own."""
    from gpud.cli.commands import parser_for
    from gpud.cli.log import command

    def of(*words: str, **environment: str) -> list[str]:
        parsed = parser_for("log").parse(list(words))
        assert not isinstance(parsed, str)
        return command(parsed, environment)

    assert of("--user", "tiny") == ["journalctl", "--user", "--unit=gpud", "GPUD_MODEL=tiny"]
    assert of("--json", GPUD_BUS="user") == ["journalctl", "--user", "--unit=gpud", "--output=json"]
    assert of("-f", "-n", "5", "--since", "today", "-x") == [
        "journalctl",
        "--unit=gpud",
        "--follow",
        "--lines=5",
        "--since=today",
        "--catalog",
    ]


def test_log_where_there_is_no_journal(alone: Place, tmp_path: Path) -> None:
    """It says so, and where else to look."""
    done = alone.gpudctl("log", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "gpudctl: there is no journal here: journalctl is not installed; "
        "gpud then logs to its standard error: look where that goes\n"
    )


# doctor --------------------------------------------------------------------------------------------------------------


def test_doctor_without_anything(alone: Place) -> None:
    """Each line is OK or a PROBLEM with what to do about it; problems make the status 1."""
    done = alone.gpudctl("doctor")
    assert done.returncode == 1
    for line in done.stdout.splitlines():
        assert line.startswith("OK ") or (line.startswith("PROBLEM ") and " — " in line), line
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("OK config: "))
    assert re.match(r"OK config: note: .*/gpud\.yaml: does not exist; everything has its default; to configure a", said)
    assert "PROBLEM bus: the session bus is not known" in done.stdout or "cannot be reached" in done.stdout
    data = json.loads(alone.gpudctl("doctor", "--json").stdout)
    assert data["problems"] == done.stdout.count("PROBLEM ")
    assert all(bool(one["remedy"]) == one["problem"] for one in data["findings"])


def test_doctor_of_a_daemon_that_runs(gpud: RealDaemon) -> None:
    """No problem: the bus answers, the name is owned, the versions agree, the engines are there; the configuration is
    the one that it was started with."""
    done = gpud.place.gpudctl("--user", "doctor")
    assert "PROBLEM" not in done.stdout
    assert done.returncode == 0
    assert f"OK daemon: gpud runs (pid {gpud.process.pid}) and owns org.kernelcore.GpuD\n" in done.stdout
    assert f"OK config: {gpud.config}: " in done.stdout
    assert 'OK engine: custom "tiny": ' in done.stdout


def test_doctor_looks_at_the_gpud_that_runs(gpud: RealDaemon) -> None:
    """As every other command asks it; whichever is configured besides."""
    done = gpud.place.gpudctl("doctor")
    assert f"OK daemon: gpud runs (pid {gpud.process.pid}) and owns org.kernelcore.GpuD\n" in done.stdout
    assert f"OK config: {gpud.config}: " in done.stdout


def test_doctor_without_a_daemon(place: Place) -> None:
    """There is a bus, and nobody owns the name: that is said, and not that the bus is at fault."""
    done = place.gpudctl("--user", "doctor")
    assert done.returncode == 1
    assert "OK bus: the session bus answers\n" in done.stdout
    assert "PROBLEM daemon: gpud is not running: nobody owns org.kernelcore.GpuD on the session bus — " in done.stdout
    assert "PROBLEM bus" not in done.stdout


def topics(findings: object) -> list[tuple[bool, str]]:
    assert hasattr(findings, "__iter__")
    return [(one.is_problem, one.text) for one in findings]


def test_an_engine_that_is_not_installed() -> None:
    """The program, where it was looked for, and which key names another."""
    config = parse(
        "models: {a: {engine: llama_server, file: /x/a.gguf}}\nengines: {llama_server: {binary: /no/such}}", "c"
    )
    (finding,) = examine_engines.engines(config)
    assert finding.is_problem
    assert "there is no program /no/such" in finding.text
    assert "engines.llama_server.binary" in finding.remedy


def test_the_version_of_an_engine(tmp_path: Path) -> None:
    """The line that has the version is the one that is shown, on whichever stream; a failing program is a problem."""
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'ggml: found nothing' >&2\necho 'version: 4711 (abc)' >&2\n")
    program.chmod(0o755)
    text = f"models: {{a: {{engine: llama_server, file: /x/a.gguf}}}}\nengines: {{llama_server: {{binary: {program}}}}}"
    (finding,) = examine_engines.engines(parse(text, "c"))
    assert (finding.is_problem, finding.text) == (False, f"llama_server: {program} (version: 4711 (abc))")
    program.write_text("#!/bin/sh\necho 'libcuda.so.1: cannot open' >&2\nexit 127\n")
    (finding,) = examine_engines.engines(parse(text, "c"))
    assert finding.is_problem
    assert "fails with status 127: libcuda.so.1: cannot open" in finding.text


DEVICES = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3060 (12044 MiB, 11800 MiB free)
  CUDA1: NVIDIA RTX A2000 (6011 MiB, 5900 MiB free)
"""


def test_the_devices_of_an_engine(tmp_path: Path) -> None:
    """A build that finds no GPU is a problem where the machine has one, and said in any case."""
    program = tmp_path / "llama-server"
    text = f"models: {{a: {{engine: llama_server, file: /x/a.gguf}}}}\nengines: {{llama_server: {{binary: {program}}}}}"
    config = parse(text, "c")

    def says(devices: str) -> None:
        program.write_text(f"#!/bin/sh\ncase $1 in --version) echo version: 1;; *) cat <<'X'\n{devices}X\nesac\n")
        program.chmod(0o755)

    says(DEVICES)
    _, finding = examine_engines.engines(config, has_gpu=True)
    assert not finding.is_problem
    assert finding.text.endswith("computes on CUDA0: NVIDIA GeForce RTX 3060, CUDA1: NVIDIA RTX A2000")
    for devices in ("Available devices:\n", "Available devices:\n  (none)\n"):
        says(devices)
        for has_gpu in (True, False):
            _, finding = examine_engines.engines(config, has_gpu=has_gpu)
            assert finding.text.endswith(f"{program} has no GPU device: its models run on the processor")
            assert finding.is_problem is has_gpu
        assert "engines.llama_server.binary" in list(examine_engines.engines(config, has_gpu=True))[1].remedy


def test_the_devices_of_the_real_llama_server() -> None:
    """It is asked, and what it says is understood: this build is for the processor."""
    made = subprocess.run([TOP / "tests/provision", "llama-server"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    program = Path(made.stdout.strip()) / "site/bin/llama-server"
    text = f"models: {{a: {{engine: llama_server, file: /x/a.gguf}}}}\nengines: {{llama_server: {{binary: {program}}}}}"
    _, finding = examine_engines.engines(parse(text, "c"))
    assert f"{program} has no GPU device" in finding.text


def test_an_engine_that_is_a_package(tmp_path: Path) -> None:
    """It is imported in the Python that would run it; the reason of a failure is shown."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'xllamacpp'\" >&2\nexit 1\n")
    python.chmod(0o755)
    text = f"models: {{a: {{engine: embedded, file: /x/a.gguf}}}}\nengines: {{embedded: {{python: {python}}}}}"
    (finding,) = examine_engines.engines(parse(text, "c"))
    assert finding.is_problem
    assert "cannot import xllamacpp: ModuleNotFoundError" in finding.text
    assert "kernelcore-gpud[embedded]" in finding.remedy


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGUF" + bytes(2 << 20), ""),
        (b"", "is not a GGUF file: it is empty"),
        (b"PK\x03\x04....", "is not a GGUF file: it begins with b'PK\\x03\\x04', not with b'GGUF'"),
        (None, "No such file or directory"),
    ],
)
def test_model_files_are_looked_into(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """There, readable, GGUF, and how large."""
    file = tmp_path / "a.gguf"
    if content is not None:
        file.write_bytes(content)
    config = parse(f"models: {{a: {{engine: embedded, file: {file}}}}}", "c")
    root = Account("root", 0, frozenset({0}))
    (finding,) = examine_engines.files(config, root)
    assert finding.is_problem == bool(problem)
    assert finding.text.endswith(problem or ": 2 MiB")


def test_a_model_of_many_files_is_a_folder(tmp_path: Path) -> None:
    """As vLLM reads it: with its config.json, and what its SafeTensors take. One of its files stands for it, too."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(2 << 20))
    root = Account("root", 0, frozenset({0}))

    def looked_at(path: Path) -> Finding:
        config = parse(f"models: {{a: {{engine: vllm, file: {path}}}}}", "c")
        (finding,) = examine_engines.files(config, root)
        return finding

    assert looked_at(folder).is_problem
    assert looked_at(folder).text.endswith(f"there is no config.json in {folder}")
    (folder / "config.json").touch()
    assert not looked_at(folder).is_problem
    assert looked_at(folder).text.endswith(": 2 MiB")
    assert looked_at(folder / "model.safetensors").text.endswith(": 2 MiB")
    missing = looked_at(tmp_path / "none")
    assert missing.is_problem and missing.text.endswith("No such file or directory")


def test_an_engine_of_safetensors_is_looked_for_by_its_own_program() -> None:
    """It is one of gpud's own, not some package's."""
    config = parse("models: {a: {engine: tgi, model: org/repo}}", "c")
    (finding,) = examine_engines.engines(config)
    assert "text-generation-launcher" in finding.text


def test_folders_in_which_models_are_looked_for(tmp_path: Path) -> None:
    """Those that are configured are there, are folders, and can be looked into; so is the machine's own store."""
    root = Account("root", 0, frozenset({0}))
    (tmp_path / "file").touch()
    (tmp_path / "closed/inside").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    paths = [tmp_path, tmp_path / "file", tmp_path / "missing", tmp_path / "closed/inside"]
    config = parse(f"registry: {{paths: [{', '.join(map(str, paths))}]}}", "c")
    found = list(examine_engines.folders(config, root, is_service=False))
    assert [one.is_problem for one in found] == [False, True, True, False]
    assert "is not a folder" in found[1].text and "No such file or directory" in found[2].text
    assert found[2].remedy == "create it, or correct registry.paths"
    texts = [one.text for one in examine_engines.folders(config, SOMEBODY, is_service=False)]
    assert f"somebody cannot enter {tmp_path / 'closed'}" in texts[3] or "somebody cannot enter" in texts[0]
    store = parse(f"storage: {{base_directory: {tmp_path / 'none'}}}", "c")
    (finding,) = examine_engines.folders(store, root, is_service=True)
    assert finding.is_problem and "gpudctl storage init" in finding.remedy
    assert list(examine_engines.folders(store, root, is_service=False)) == []
    nothing = parse("registry: {enable: false, paths: [/none]}", "c")
    assert list(examine_engines.folders(nothing, root, is_service=True)) == []


def test_a_split_model_needs_all_its_parts(tmp_path: Path) -> None:
    """The part that is missing is named."""
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(b"GGUF")
    config = parse(f"models: {{a: {{engine: embedded, file: {tmp_path}/a-00001-of-00002.gguf}}}}", "c")
    (finding,) = examine_engines.files(config, Account("root", 0, frozenset({0})))
    assert "its part a-00002-of-00002.gguf: No such file" in finding.text


def test_the_newest_snapshot_is_meant_by_latest(tmp_path: Path) -> None:
    """As in the Hugging Face cache, which has no folder of that name."""
    for age, name in enumerate(("aaa", "bbb")):
        file = tmp_path / "snapshots" / name / "m.gguf"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"GGUF")
        os.utime(file, (1000 + age, 1000 + age))
    assert examine_engines.latest(tmp_path / "snapshots/latest/m.gguf").parent.name == "bbb"
    assert examine_engines.latest(tmp_path / "snapshots/latest/no.gguf").parent.name == "latest"


def test_a_file_that_the_service_may_not_read(tmp_path: Path) -> None:
    """Modes are judged for the user that gpud runs as, not for whoever asks."""
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    file.chmod(0o640)
    assert not may(SOMEBODY, file, READ)
    assert may(SOMEBODY._replace(groups=frozenset({file.stat().st_gid})), file, READ)
    assert may(SOMEBODY._replace(uid=file.stat().st_uid), file, READ | WRITE)
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    if os.geteuid() == 0:
        for folder in (tmp_path, *tmp_path.parents[:-1]):
            if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
                folder.chmod(0o755)
        assert closed_folder(SOMEBODY, closed / "inner" / "a.gguf") == closed


def machine(root: Path, *, vendor: str = "", driver: bool = False, nodes: tuple[str, ...] = ()) -> Path:
    """A root directory with what a machine with such a GPU has."""
    (root / "dev" / "dri").mkdir(parents=True)
    if vendor:
        card = root / "sys/bus/pci/devices/0000:01:00.0"
        card.mkdir(parents=True)
        (card / "class").write_text("0x030000\n")
        (card / "vendor").write_text(f"{vendor}\n")
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Mon Jan 20\nGCC version: 12\n"
        (root / "proc/driver/nvidia/version").write_text(version)
    for node in nodes:
        (root / "dev" / node).touch(mode=0o660)
        (root / "dev" / node).chmod(0o660)
    return root


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    """That is a normal machine, and no problem."""
    known = " or ".join(vendor.title for vendor in VENDORS)
    assert topics(examine_machine.gpus(SOMEBODY, machine(tmp_path))) == [
        (False, f"no {known} GPU on the PCI bus: the budget is the machine's own memory")
    ]


def test_an_nvidia_gpu_without_its_driver(tmp_path: Path) -> None:
    """The GPU is on the bus, the driver is not loaded, the nodes are missing."""
    found = list(examine_machine.gpus(SOMEBODY, machine(tmp_path, vendor="0x10de")))
    assert found[0].is_problem
    assert "its driver is not loaded" in found[0].text
    assert [Path(one.text.split()[0]).name for one in found[1:4]] == ["nvidiactl", "nvidia-uvm", "nvidia0"]
    assert all(one.is_problem for one in found[1:4])


def test_device_nodes_that_gpud_may_not_use(tmp_path: Path) -> None:
    """The group that it would need is named; a member of it has no problem."""
    root = machine(tmp_path, vendor="0x10de", driver=True, nodes=("nvidiactl", "nvidia-uvm", "nvidia0"))
    found = list(examine_machine.gpus(SOMEBODY, root))
    assert (found[0].is_problem, found[0].text) == (False, "NVIDIA UNIX x86_64 Kernel Module  570.86.15  Mon Jan 20")
    assert all(one.is_problem and "may not use it" in one.text for one in found[1:4])
    assert found[1].remedy.startswith('"usermod --append --groups ')
    member = SOMEBODY._replace(groups=frozenset({(root / "dev/nvidiactl").stat().st_gid}))
    assert not any(one.is_problem for one in list(examine_machine.gpus(member, root))[:4])


def test_an_amd_gpu(tmp_path: Path) -> None:
    """Its nodes are kfd and the render nodes."""
    root = machine(tmp_path, vendor="0x1002", nodes=("kfd", "dri/renderD128"))
    found = topics(examine_machine.gpus(SOMEBODY, root))
    assert [problem for problem, _ in found] == [True, True]
    assert "renderD128" in found[1][1]


def test_cgroups_from_the_unit_file(tmp_path: Path) -> None:
    """Without the daemon its unit file tells whether it will have a cgroup of its own."""
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").touch()
    unit = tmp_path / "gpud.service"
    unit.write_text("[Service]\nDelegate=yes\n")
    assert topics(examine_machine.cgroups(None, [tmp_path / "no", unit], tmp_path))[0][0] is False
    unit.write_text("[Service]\n")
    assert topics(examine_machine.cgroups(None, [unit], tmp_path))[0][0] is True


def test_cgroups_of_a_daemon_that_runs(tmp_path: Path) -> None:
    """The folder of its unit must be its own; a daemon outside systemd has none, which works too."""
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/system.slice/gpud.service/supervisor").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").touch()
    (tmp_path / "proc/77/cgroup").write_text("0::/system.slice/gpud.service/supervisor\n")
    ((problem, text),) = topics(examine_machine.cgroups(77, (), tmp_path))
    assert (problem, "belongs to gpud" in text) == (False, True)
    (tmp_path / "proc/77/cgroup").write_text("0::/user.slice/session-1.scope\n")
    ((problem, text),) = topics(examine_machine.cgroups(77, (), tmp_path))
    assert (problem, "was not started by systemd" in text) == (False, True)


def test_ports_that_are_taken() -> None:
    """Who has it, and which key chooses another."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = examine_machine.ports({"engines.ollama": ("127.0.0.1", port)}, None)
        assert finding.is_problem
        assert f"port {port} is taken by" in finding.text
        assert f"(pid {os.getpid()})" in finding.text
        # The same port in the hands of gpud, or of what it started, is as it should be.
        for daemon in (os.getpid(), os.getppid()):
            (finding,) = examine_machine.ports({"engines.ollama": ("127.0.0.1", port)}, daemon)
            assert (finding.is_problem, "is used by gpud" in finding.text) == (False, True)
    (finding,) = examine_machine.ports({"engines.ollama": ("127.0.0.1", port)}, None)
    assert finding == Finding("port", f"engines.ollama: 127.0.0.1 port {port} is free")


def test_ports_of_a_gpud_that_is_somebody_elses() -> None:
    """Who may not see whose process listens is told whose user it is: gpud's, while gpud runs."""
    if os.getuid() != 0:
        pytest.skip("only root may be two others")
    listen = "import os, socket, sys; os.setuid(54322); s = socket.create_server(('127.0.0.1', 0))\n"
    listen += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    # What is imported where it is needed is imported while this may still be read.
    ask = "import os, sys, psutil; from gpud.cli.examine_machine import ports; os.setgroups([]); os.setuid(54321)\n"
    ask += "for daemon in (int(sys.argv[2]), os.getpid(), None):\n"
    ask += "    (found,) = ports({'http.front': ('127.0.0.1', int(sys.argv[1]))}, daemon); print(found.text)"
    with subprocess.Popen(
        [sys.executable, "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as gpud:
        assert gpud.stdout is not None
        port = int(gpud.stdout.readline())
        asked = [sys.executable, "-c", ask, str(port), str(gpud.pid)]
        said = subprocess.run(asked, cwd=TOP, capture_output=True, text=True, check=True).stdout.splitlines()
        gpud.communicate()
    where = f"http.front: 127.0.0.1 port {port} is"
    taken_by = f"{where} taken by another user's program (root sees which)"
    assert said == [f"{where} used by gpud, or by a program of its user", taken_by, taken_by]


def test_python_and_its_packages() -> None:
    """What gpud needs is installed here, and said with its versions."""
    found = topics(examine_machine.python())
    assert (False, f"Python {sys.version.split()[0]} at {sys.executable}") in found
    assert not any(problem for problem, _ in found)


def test_the_state_directory(tmp_path: Path) -> None:
    """There and writable, or yet to be made; a file in its place is a problem."""
    root = Account("root", 0, frozenset({0}))
    assert not examine_engines.state_directory(tmp_path / "new", root).is_problem
    (tmp_path / "file").touch()
    assert examine_engines.state_directory(tmp_path / "file", root).is_problem
    (tmp_path / "closed").mkdir(mode=0o700)
    if os.geteuid() == 0:
        assert "may not write there" in examine_engines.state_directory(tmp_path / "closed", SOMEBODY).text


def test_doctor_looks_for_every_package_that_gpud_needs() -> None:
    """Those of pyproject.toml, but for what only systemd's services ask for."""
    document = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    needed = {re.split(r"[=>\[]", wanted)[0] for wanted in document["project"]["dependencies"]}
    assert set(examine_machine.PACKAGES) == needed - {"systemd-python"}
    (python, packages) = examine_machine.python()
    assert not python.remedy and not packages.remedy
    assert all(f"{name} " in packages.text for name in examine_machine.PACKAGES)
