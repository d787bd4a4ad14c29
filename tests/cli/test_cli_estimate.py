"""gpudctl estimate: what a model would take, asked of a real llama-server or calculated; and what is no model."""

import json
import os
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
import sparse_model
import tiny_model
from cli_place import TOP, Place, finish
from core.model_headers import HEADERS

MIB = 1 << 20

ARGUMENTS = ("-c", "16384", "-np", "2", "-ctk", "q8_0", "-ctv", "q8_0", "-ngl", "30")


@pytest.fixture(scope="module")
def llama_server() -> str:
    made = subprocess.run([TOP / "tests/provision", "llama-server"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return str(Path(made.stdout.strip()) / "site/bin/llama-server")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """7.9 GiB that take 20 KiB on disk."""
    return sparse_model.write_llama(tmp_path_factory.mktemp("large") / "large.gguf")


@pytest.fixture
def alone(tmp_path: Path) -> Place:
    """No bus, no configuration, and no llama-server in PATH."""
    return Place(tmp_path, {"GPUD_BUS": "user", "PATH": "/usr/bin:/bin"})


def program(folder: Path, body: str) -> str:
    """Something that answers --help as a llama-server and then does as the body says."""
    path = folder / "llama-server"
    text = TOP / "tests/backends/help_new.txt"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--help*) cat {text}; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return str(path)


def failed(place: Place, *words: str, status: int = 1) -> str:
    """The one line that it says."""
    done = place.gpudctl("estimate", *words)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gpudctl: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# What it says --------------------------------------------------------------------------------------------------------


def test_a_llama_server_in_the_path_decides(alone: Place, large: str, llama_server: str) -> None:
    """Its own figures, to the MiB that it counts in, with the formula's beside them; nothing is left."""
    folder = str(Path(llama_server).parent)
    done = alone.gpudctl("estimate", large, "--json", "--", *ARGUMENTS, PATH=f"{folder}:/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    (host,) = told["devices"]
    assert (told["architecture"], told["source"], host["name"]) == ("llama", "probe", "Host")
    assert (host["weights_bytes"], host["kv_bytes"], host["state_bytes"]) == (8137 * MIB, 1088 * MIB, 0)
    assert (
        host["total_bytes"]
        == told["total_bytes"]
        == sum(host[name] for name in ("weights_bytes", "kv_bytes", "state_bytes", "compute_bytes"))
    )
    assert abs(told["formula_bytes"] - told["total_bytes"]) < 0.03 * told["total_bytes"]
    assert not [process for process in psutil.process_iter(["cmdline"]) if large in (process.info["cmdline"] or ())]


def test_the_formula_starts_nothing(alone: Place, large: str, tmp_path: Path) -> None:
    """A llama-server in PATH, which would leave a trace, is not run."""
    program(tmp_path, f"touch {tmp_path / 'trace'}")
    done = alone.gpudctl("estimate", large, "--formula", "--json", "--", *ARGUMENTS, PATH=f"{tmp_path}:/usr/bin:/bin")
    told = json.loads(done.stdout)
    assert (told["source"], [device["name"] for device in told["devices"]]) == ("formula", ["Host"])
    assert told["devices"][0]["kv_bytes"] == 1088 * MIB
    assert "formula_bytes" not in told
    assert not (tmp_path / "trace").exists()


def test_without_a_llama_server_it_is_calculated(alone: Place, large: str) -> None:
    """For as many GPUs as are asked for, in the engine's words; layers that stay behind are the host's."""
    told = alone.json("estimate", large, "--gpus", "2", "--", "-c", "16384", "-ts", "3,1")
    assert told["source"] == "formula"
    assert [device["name"] for device in told["devices"]] == ["CUDA0", "CUDA1", "Host"]
    first, second, _ = told["devices"]
    assert first["kv_bytes"] > 2 * second["kv_bytes"]
    half = alone.json("estimate", large, "--gpus", "1", "--", "-c", "16384", "-ngl", "17")
    assert half["devices"][0]["kv_bytes"] == half["devices"][1]["kv_bytes"] == 1024 * MIB


@pytest.mark.parametrize(("fit", "tokens"), [((), 2 * 131072), (("-fit", "off"), 131072)])
def test_slots_without_a_context_have_what_llama_server_gives_them(
    alone: Place, large: str, llama_server: str, fit: tuple[str, ...], tokens: int
) -> None:
    """Each as much as the model was trained with; with fitting off they share it."""
    for way in (("--binary", llama_server), ("--formula",)):
        (host,) = alone.json("estimate", large, *way, "--", "-np", "2", *fit)["devices"]
        assert host["kv_bytes"] == tokens * (128 << 10)


def test_the_table_is_for_people(alone: Place, large: str, llama_server: str) -> None:
    """The same figures, where they are from, and how far the two are apart; empty columns are left out."""
    done = alone.gpudctl("estimate", large, "--binary", llama_server, "--", *ARGUMENTS)
    lines = done.stdout.splitlines()
    assert lines[0] == "llama: 7.9 GiB on disk, 16384 tokens of context"
    assert lines[2].split() == ["DEVICE", "WEIGHTS", "KEYS", "AND", "VALUES", "BUFFERS", "TOTAL"]
    assert lines[3].split()[:5] == ["Host", "8137", "MiB", "1088", "MiB"]
    assert lines[5].endswith(f"in all, as {llama_server} says")
    assert lines[6].startswith("the formula says")


def test_gpus_that_llama_server_does_not_see_are_calculated(alone: Place, tmp_path: Path, large: str) -> None:
    """And that is said, beside the figures."""
    rows = [{"kind": "host", "name": "Host", "model": 1, "context": 1, "compute": 1}]
    record = json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": rows}})
    binary = program(tmp_path, f"echo '{record}'")
    done = alone.gpudctl("estimate", large, "--json", "--gpus", "1", "--binary", binary)
    assert json.loads(done.stdout)["source"] == "formula"
    assert done.stderr == f"gpudctl: calculated for 1 GPU: {binary} sees none here\n"


def test_the_devices_of_a_record_are_named_as_the_engine_names_them(alone: Place, tmp_path: Path, large: str) -> None:
    """In its order; it sees no more GPUs than are asked for."""
    rows = [
        {"kind": "device", "name": "ROCm0", "model": 7, "context": 2, "compute": 1},
        {"kind": "host", "name": "Host", "model": 1, "context": 0, "compute": 1},
    ]
    record = json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": rows}})
    seen = tmp_path / "seen"
    binary = program(tmp_path, f"echo $CUDA_VISIBLE_DEVICES > {seen}; echo '{record}'")
    told = alone.json("estimate", large, "--gpus", "1", "--binary", binary)
    assert [(device["name"], device["total_bytes"]) for device in told["devices"]] == [
        ("ROCm0", 10 * MIB),
        ("Host", 2 * MIB),
    ]
    assert seen.read_text() == "0\n"


def test_the_configured_llama_server_is_asked(alone: Place, large: str, llama_server: str) -> None:
    """Without --binary; a configuration that is wrong is no hindrance."""
    config = alone.directory / "config/gpud/gpud.yaml"
    config.parent.mkdir()
    config.write_text(f"engines: {{llama_server: {{binary: {llama_server}}}}}\n")
    assert alone.json("estimate", large, "--", *ARGUMENTS)["source"] == "probe"
    config.write_text("nonsense: true\n")
    assert alone.json("estimate", large, "--", *ARGUMENTS)["source"] == "formula"


def test_what_is_loaded_beside_the_model_counts(alone: Place, tmp_path: Path, large: str, llama_server: str) -> None:
    """A draft model, a projector, an adapter: by both ways."""
    tiny = str(tiny_model.write(tmp_path / "tiny.gguf"))
    projector = sparse_model.write_projector(tmp_path / "mmproj.gguf")
    beside = ("-c", "4096", "-md", tiny, "-mm", projector, "--lora", projector)
    for way in (("--binary", llama_server), ("--formula",)):
        plain = alone.json("estimate", large, *way, "--", "-c", "4096")["total_bytes"]
        more = alone.json("estimate", large, *way, "--", *beside)["total_bytes"]
        assert Path(projector).stat().st_size * 2 < more - plain < 64 * MIB


# What is wrong with it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["absent", "folder", *tiny_model.BROKEN])
@pytest.mark.parametrize("way", ["--formula", "--binary"])
def test_what_is_no_model_is_said(alone: Place, tmp_path: Path, llama_server: str, kind: str, way: str) -> None:
    """One line that names the file, and status 1."""
    file = tmp_path / f"{kind}.gguf"
    if kind == "folder":
        file.mkdir()
    elif kind != "absent":
        tiny_model.write_broken(file, kind)
    asked = (way, llama_server) if way == "--binary" else (way,)
    if kind == "missing-tensor":
        # Of a file without a tensor the rest can be calculated; an engine finds out.
        done = alone.gpudctl("estimate", str(file), *asked)
        assert done.returncode == (1 if way == "--binary" else 0)
        return
    said = failed(alone, str(file), *asked)
    assert str(file) in said or "perceptron9000" in said


def test_an_architecture_that_the_formula_does_not_know(alone: Place, tmp_path: Path, llama_server: str) -> None:
    """Is named, by the formula and by the engine."""
    file = str(tiny_model.write_broken(tmp_path / "x.gguf", "unknown-architecture"))
    assert '"perceptron9000"' in failed(alone, file, "--formula")
    assert "perceptron9000" in failed(alone, file, "--binary", llama_server)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--", "-c", "many"), 'cannot read -c: "many"'),
        (("--", "-ngl", "some"), 'cannot read -ngl: "some"'),
        (("--", "-ctk", "q9"), 'cannot read -ctk: "q9"'),
        (("--", "-c"), "-c needs a value"),
        (("--", "-m", "other.gguf"), "two models"),
        (("--", "-hf", "org/repo"), "-hf names a different model"),
        (("--", "--list-devices"), "loads nothing"),
        (("--formula", "--binary", "x"), "--formula asks no llama-server"),
        (("--gpus", "65"), "--gpus"),
        (("--gpus", "-1"), "--gpus"),
        (("-c", "4096"), "unrecognized arguments: -c"),
    ],
)
def test_a_wrong_command_line_is_said(alone: Place, large: str, words: tuple[str, ...], said: str) -> None:
    """With the flag, and status 2."""
    assert said in failed(alone, large, *words, status=2)


def test_errors_are_objects_for_programs(alone: Place, tmp_path: Path) -> None:
    """As with every command."""
    done = alone.gpudctl("estimate", "--json", str(tmp_path / "none.gguf"))
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 1", "exited with status 1 and said nothing"),
        ("kill -SEGV $$", "was ended by signal 11"),
        ("echo 'error: loading went wrong' >&2; exit 1", "said: error: loading went wrong"),
        ("echo 'load_tensors: loading model tensors'; sleep 60", "its dry run failed"),
        ("yes", "no record within 50000 lines and 8 MiB"),
        ("head -c 300000 /dev/urandom; exit 4", "exited with status 4"),
        ('echo \'{"type":"fit_memory_breakdown","data":{}}\'', "exited with status 0"),
    ],
)
def test_a_llama_server_that_misbehaves_is_said(alone: Place, tmp_path: Path, large: str, body: str, said: str) -> None:
    """It dies, floods, prints rubbish, or would really load: one line, status 1, soon."""
    assert said in failed(alone, large, "--binary", program(tmp_path, body))


def test_a_llama_server_that_hangs_is_ended(alone: Place, tmp_path: Path, large: str) -> None:
    """After its time, with what it forked."""
    pids = tmp_path / "pids"
    said = failed(alone, large, "--binary", program(tmp_path, f"sleep 60 & echo $! $$ > {pids}; echo working; wait"))
    assert "no record within 10 s; its last line was: working" in said
    assert not [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid) and _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).wait(60) is None and False
    except psutil.TimeoutExpired:
        return True
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", ["absent", "no-program", "not-executable"])
def test_a_binary_that_is_none_is_said(alone: Place, tmp_path: Path, large: str, kind: str) -> None:
    """One that is not there, is another program, or cannot be run."""
    binary = tmp_path / "binary"
    if kind != "absent":
        binary.write_text("#!/bin/sh\necho hello\n")
        binary.chmod(stat.S_IRUSR | (stat.S_IXUSR if kind == "no-program" else 0))
    said = failed(alone, large, "--binary", str(binary))
    assert {"absent": "does not exist", "no-program": "hello", "not-executable": "cannot be executed"}[kind] in said


def test_being_interrupted_leaves_nothing(alone: Place, tmp_path: Path, large: str) -> None:
    """Ctrl-C while the engine is asked: status 130, and the engine is gone."""
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    process = alone.start("estimate", large, "--binary", program(tmp_path, f"echo $$ > {pids}; sleep 60"))
    pid = int(pids.read_text())
    process.send_signal(2)
    status, out, _ = finish(process)
    assert (status, out) == (130, "")
    assert not _runs(pid)


def test_a_state_is_told_apart_where_the_formula_knows_it(alone: Place, tmp_path: Path, llama_server: str) -> None:
    """The record has one sum for keys, values and states of a hybrid model. With a GPU it is not asked at all."""
    hybrid = next(header for header in HEADERS.values() if header.architecture == "granitehybrid")
    file = str(hybrid.write(tmp_path / "hybrid.gguf"))
    told = alone.json("estimate", file, "--binary", llama_server, "--", "-c", "4096", "-np", "2")
    (host,) = told["devices"]
    calculated = alone.json("estimate", file, "--formula", "--", "-c", "4096", "-np", "2")["devices"][0]
    assert told["source"] == "probe"
    assert host["state_bytes"] == calculated["state_bytes"] > 0
    assert abs(host["kv_bytes"] - calculated["kv_bytes"]) <= MIB
    on_gpu = alone.gpudctl("estimate", file, "--json", "--gpus", "1", "--binary", llama_server, "--", "-c", "4096")
    assert json.loads(on_gpu.stdout)["source"] == "formula"
    assert "a dry run would really allocate the state" in on_gpu.stderr
