"""The formula beside what the real llama-server says of itself, on files with a header and no weights.

The record is printed in whole MiB, rounded down, before any weight is read; the server is killed then. Flags that gpud
gives for itself change nothing in it. The engine for the CPU has one row for the machine's memory, and one for matrices
that it keeps rearranged: nothing is larger by that but embeddings that are the output too, which are then there twice.
``--no-repack`` makes it one row and keeps them once.
"""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from core.model_headers import HEADERS

from gpud.core.estimate import estimate
from gpud.core.plan import Plan

pytestmark = pytest.mark.engines

MIB = 1 << 20

ARGUMENTS: tuple[tuple[str, Plan], ...] = (
    ("-c 16384", Plan(context=16384)),
    ("-c 16384 -np 2", Plan(context=16384, parallel=2)),
    ("-c 65536 -np 1 -ub 1024", Plan(context=65536, parallel=1, micro_batch=1024)),
    ("-c 8192 -ctk q8_0 -ctv q8_0 -fa on", Plan(context=8192, type_k="q8_0", type_v="q8_0", flash_attention="on")),
    ("-c 4000 -np 3 -kvu --swa-full", Plan(context=4000, parallel=3, unified=True, full_swa=True)),
)

TOTAL_ERROR = 0.03

Record = dict[str, int]


def records(llama_server: str, arguments: list[str], count: int = 1) -> list[Record]:
    """Start the server, take its first so many records, end it. Each is the sum of its rows."""
    argv = [llama_server, "--log-jsonl", "--offline", "--host", "127.0.0.1", "--port", "0", *arguments]
    found: list[Record] = []
    said: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                said.append(line)
                if '"fit_memory_breakdown"' in line:
                    rows = json.loads(line)["data"]["rows"]
                    found.append({part: sum(row[part] for row in rows) for part in ("model", "context", "compute")})
                    if len(found) == count:
                        break
        finally:
            server.kill()
    if len(found) < count:
        pytest.fail(f"{len(found)} of {count} records of {' '.join(argv)}:\n{''.join(said[-20:])}")
    return found


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_the_formula_agrees_with_the_engine(name: str, llama_server: str, tmp_path: Path) -> None:
    """Keys, values and states to the MiB, weights exactly, all together within three in a hundred."""
    header = HEADERS[name]
    path = header.write(tmp_path / "model.gguf")
    for arguments, plan in ARGUMENTS:
        (record,) = records(llama_server, ["-m", str(path), *arguments.split()])
        (part,) = estimate(header.file(), plan).parts

        assert (part.kv_bytes + part.state_bytes) // MIB == record["context"], arguments
        # Two rows, each rounded down.
        assert part.weights_bytes // MIB - record["model"] in (0, 1), arguments
        assert part.total_bytes / MIB == pytest.approx(sum(record.values()), rel=TOTAL_ERROR), arguments


@pytest.mark.parametrize("name", ["Qwen3-8B", "GLM-4.5-Air", "gpt-oss-20b", "gemma-3n-E4B-it", "Jamba-v0.1"])
def test_weights_are_exact_in_one_row(name: str, llama_server: str, tmp_path: Path) -> None:
    """Without rearranged matrices there is one row, and one rounding."""
    header = HEADERS[name]
    path = header.write(tmp_path / "model.gguf")
    (record,) = records(llama_server, ["-m", str(path), "-c", "4096", "--no-repack"])
    (part,) = estimate(header.file(), Plan(context=4096)).parts

    assert part.weights_bytes // MIB == record["model"]


def test_without_rearranging_tied_embeddings_are_there_once(llama_server: str, tmp_path: Path) -> None:
    """What the formula counts twice for these engines is the embeddings, to the MiB."""
    header = HEADERS["Llama-3.2-1B-Instruct"]
    path = header.write(tmp_path / "model.gguf")
    (usual,) = records(llama_server, ["-m", str(path), "-c", "4096"])
    (plain,) = records(llama_server, ["-m", str(path), "-c", "4096", "--no-repack"])

    embeddings = next(tensor.bytes for tensor in header.file().tensors if tensor.name == "token_embd.weight")
    assert usual["model"] - plain["model"] == pytest.approx(embeddings / MIB, abs=2)


def test_the_engine_counts_a_draft_model_as_the_formula_does(llama_server: str, tmp_path: Path) -> None:
    """A record of its own, with the context of the model that it drafts for."""
    header, small = HEADERS["Qwen3-8B"], HEADERS["Qwen3-0.6B"]
    path, draft = header.write(tmp_path / "model.gguf"), small.write(tmp_path / "draft.gguf")
    arguments = ["-m", str(path), "-md", str(draft), "--spec-type", "draft-simple", "-c", "16384", "-np", "2"]
    own, drafts = records(llama_server, arguments, count=2)
    plan = Plan(context=16384, parallel=2)
    (alone,) = estimate(header.file(), plan).parts
    (both,) = estimate(header.file(), replace(plan, draft=Plan()), draft=small.file()).parts

    assert alone.kv_bytes // MIB == own["context"]
    assert (both.kv_bytes - alone.kv_bytes) // MIB == drafts["context"]
    assert (both.weights_bytes - alone.weights_bytes) // MIB - drafts["model"] in (0, 1)
