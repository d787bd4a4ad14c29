"""The formula beside what the real llama-server says of itself, on files with a header and no weights.

The record is printed in whole MiB, rounded down, before any weight is read; the server is killed then. Flags that gpud
gives for itself change nothing in it. The engine for the CPU has one row for the machine's memory, and one for matrices
that it keeps rearranged: nothing is larger by that but embeddings that are the output too, which are then there twice.
``--no-repack`` makes it one row and keeps them once.
"""

from pathlib import Path

import pytest
from core.dry_record import ARGUMENTS, dry_records, projector_mib
from core.model_headers import ENCODERS, HEADERS

from gpud.catalog import gguf
from gpud.core.estimate import estimate
from gpud.core.plan import Plan
from gpud.core.record import replace

pytestmark = pytest.mark.engines

MIB = 1 << 20

TOTAL_ERROR = 0.03


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_the_formula_agrees_with_the_engine(name: str, llama_server: str, tmp_path: Path) -> None:
    """Keys, values and states to the MiB, weights exactly, all together within three in a hundred: of the file as it is
    read from the disk."""
    path = HEADERS[name].write(tmp_path / "model.gguf")
    file = gguf.read(path)
    for arguments, plan in ARGUMENTS:
        (record,) = dry_records(llama_server, ["-m", str(path), *arguments.split()])
        (part,) = estimate(file, plan).parts

        assert (part.kv_bytes + part.state_bytes) // MIB == record.context, arguments
        # Two rows, each rounded down.
        assert part.weights_bytes // MIB - record.model in (0, 1), arguments
        assert part.total_bytes / MIB == pytest.approx(record.total, rel=TOTAL_ERROR), arguments


@pytest.mark.parametrize("name", ["Qwen3-8B", "GLM-4.5-Air", "gpt-oss-20b", "gemma-3n-E4B-it", "Jamba-v0.1"])
def test_weights_are_exact_in_one_row(name: str, llama_server: str, tmp_path: Path) -> None:
    """Without rearranged matrices there is one row, and one rounding."""
    header = HEADERS[name]
    path = header.write(tmp_path / "model.gguf")
    (record,) = dry_records(llama_server, ["-m", str(path), "-c", "4096", "--no-repack"])
    (part,) = estimate(header.file(), Plan(context=4096)).parts

    assert part.weights_bytes // MIB == record.model


def test_without_rearranging_tied_embeddings_are_there_once(llama_server: str, tmp_path: Path) -> None:
    """What the formula counts twice for these engines is the embeddings, to the MiB."""
    header = HEADERS["Llama-3.2-1B-Instruct"]
    path = header.write(tmp_path / "model.gguf")
    (usual,) = dry_records(llama_server, ["-m", str(path), "-c", "4096"])
    (plain,) = dry_records(llama_server, ["-m", str(path), "-c", "4096", "--no-repack"])

    embeddings = next(tensor.bytes for tensor in header.file().tensors if tensor.name == "token_embd.weight")
    assert usual.model - plain.model == pytest.approx(embeddings / MIB, abs=2)


def test_the_engine_counts_a_draft_model_as_the_formula_does(llama_server: str, tmp_path: Path) -> None:
    """A record of its own, with the context of the model that it drafts for."""
    header, small = HEADERS["Qwen3-8B"], HEADERS["Qwen3-0.6B"]
    path, draft = header.write(tmp_path / "model.gguf"), small.write(tmp_path / "draft.gguf")
    arguments = ["-m", str(path), "-md", str(draft), "--spec-type", "draft-simple", "-c", "16384", "-np", "2"]
    own, drafts = dry_records(llama_server, arguments, count=2)
    plan = Plan(context=16384, parallel=2)
    (alone,) = estimate(header.file(), plan).parts
    (both,) = estimate(header.file(), replace(plan, draft=Plan()), draft=small.file()).parts

    assert alone.kv_bytes // MIB == own.context
    assert (both.kv_bytes - alone.kv_bytes) // MIB == drafts.context
    assert (both.weights_bytes - alone.weights_bytes) // MIB - drafts.model in (0, 1)


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_the_engine_counts_a_projector_as_the_formula_does(kind: str, llama_server: str, tmp_path: Path) -> None:
    """Its record of the model leaves an encoder out; a line of its own says what that takes at the start."""
    encoder, model = ENCODERS[kind]
    path = HEADERS[model].write(tmp_path / "model.gguf")
    said = projector_mib(llama_server, str(path), str(encoder.write(tmp_path / "mmproj.gguf")))
    (without,) = estimate(HEADERS[model].file(), Plan(context=4096)).parts
    (made,) = estimate(HEADERS[model].file(), Plan(context=4096), mmproj=encoder.file()).parts

    assert (made.total_bytes - without.total_bytes) / MIB == pytest.approx(said, rel=0.02)
