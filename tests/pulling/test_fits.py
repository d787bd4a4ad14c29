"""What fits is said by the same arithmetic as a load, and the best that fits is recommended."""

from pathlib import Path
from typing import Any

import pytest
import sparse_model

from gpud.cli.budget import counted
from gpud.cli.downloading.fits import Choice, Row, lines, recommended, rows
from gpud.cli.estimate import calculate, plan_for, read_files
from gpud.cli.output import Output

GIB = 1 << 30


def choice(label: str, size_bytes: int, missing: int = 0) -> Choice:
    file = {"path": f"m-{label}.gguf", "size_bytes": size_bytes, "checksum_kind": "sha256", "checksum": "0" * 64}
    return {"label": label, "stem": f"m-{label}", "files": [file], "missing": missing}


def gpu(budget: int | None, available: int | None, uuid: str = "GPU-1") -> dict[str, Any]:
    record: dict[str, Any] = {"Uuid": uuid, "Health": ""}
    record |= {"Budget": budget} if budget is not None else {}
    return record | ({"Available": available} if available is not None else {})


def host(budget: int) -> dict[str, Any]:
    return gpu(budget, budget, "host")


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Choice, str]:
    """Eight billion parameters in Q8_0, as its header says."""
    path = sparse_model.write_llama(tmp_path / "m-Q8_0.gguf")
    return choice("Q8_0", Path(path).stat().st_size), path


LADDER = (("Q2_K", 3), ("Q4_K_M", 5), ("Q6_K", 6.5), ("Q8_0", 7.9), ("F16", 15))


def ladder(llama: tuple[Choice, str]) -> list[Choice]:
    return [llama[0] if label == "Q8_0" else choice(label, round(gib * GIB)) for label, gib in LADDER]


def test_of_the_one_whose_header_was_read_it_is_the_estimate_itself(llama: tuple[Choice, str]) -> None:
    """Not a rule of thumb."""
    found = {row.label: row for row in rows(ladder(llama), llama, 16384, 1, [gpu(24 * GIB, 24 * GIB)])}
    plan = plan_for(llama[1], ("-c", "16384"), 1, {})
    assert found["Q8_0"].way.shares == counted(calculate(read_files(plan), plan), None, "").shares
    assert found["Q8_0"].way.source == "formula"


def test_others_differ_by_their_weights_alone(llama: tuple[Choice, str]) -> None:
    """Keys, values and buffers are the same in every quantization."""
    found = {row.label: row for row in rows(ladder(llama), llama, 16384, 1, [])}
    rest = found["Q8_0"].way.need_bytes - found["Q8_0"].size_bytes
    assert rest > 2 * GIB
    for row in found.values():
        assert abs(row.way.need_bytes - row.size_bytes - rest) < 0.12 * row.size_bytes


def test_more_context_needs_more(llama: tuple[Choice, str]) -> None:
    """And no more than the model was trained for."""
    needs = [rows([llama[0]], llama, context, 1, [])[0].way.need_bytes for context in (4096, 131072, 1 << 20)]
    assert needs[0] < needs[1] == needs[2]


@pytest.mark.parametrize(
    ("budget", "best"), [(24, "Q8_0"), (12, "Q8_0"), (9.8, "Q6_K"), (8, "Q4_K_M"), (6, "Q2_K"), (3, None)]
)
def test_the_largest_that_fits_wholly_is_recommended(llama: tuple[Choice, str], budget: float, best: str) -> None:
    """And not one of twice the size that is no better; where none fits, none is."""
    devices = [gpu(round(budget * GIB), 0), host(64 * GIB)]
    chosen = recommended(rows(ladder(llama), llama, 16384, 1, devices))
    assert (chosen.label if chosen else None) == best


def test_what_fits_now_is_not_what_fits_at_most(llama: tuple[Choice, str]) -> None:
    """Another model is loaded."""
    devices = [gpu(12 * GIB, 6 * GIB), host(64 * GIB)]
    found = {row.label: (row.now, row.ever) for row in rows(ladder(llama), llama, 16384, 1, devices)}
    assert (found["Q2_K"], found["Q8_0"], found["F16"]) == ((True, True), (False, True), (False, False))


def test_a_gpu_that_sleeps_is_not_woken_to_look(llama: tuple[Choice, str]) -> None:
    """What is free of it nobody knows."""
    (row, *_) = rows(ladder(llama), llama, 16384, 1, [gpu(12 * GIB, None), host(64 * GIB)])
    assert (row.now, row.ever) == (None, True)


def test_without_a_gpu_the_machines_memory_decides(llama: tuple[Choice, str]) -> None:
    """A normal machine."""
    found = {row.label: row for row in rows(ladder(llama), llama, 16384, 0, [host(9 * GIB)])}
    assert found["Q8_0"].way.on_host
    assert (found["Q4_K_M"].ever, found["Q8_0"].ever) == (True, False)


def test_without_a_header_sizes_say_it(llama: tuple[Choice, str], tmp_path: Path) -> None:
    """Of a model that the formula does not know, or whose header cannot be had; it is marked as such."""
    nonsense = tmp_path / "nonsense.gguf"
    nonsense.write_bytes(b"GGUF" + bytes(100))
    for header in (None, (llama[0], str(nonsense))):
        found = rows(ladder(llama), header, 16384, 1, [gpu(12 * GIB, 12 * GIB)])
        assert {row.way.source for row in found} == {"guess"}
        assert "about 9." in "\n".join(lines(found, None, Output()))


def test_without_a_daemon_the_common_one_is_recommended(llama: tuple[Choice, str]) -> None:
    """What fits is then in no column."""
    found = rows(ladder(llama), llama, 16384, 1, [])
    chosen = recommended(found)
    assert chosen is not None and chosen.label == "Q4_K_M"
    assert "FITS" not in lines(found, chosen, Output())[0]


def test_what_is_not_complete_is_not_recommended() -> None:
    """It is listed, with what is missing."""
    found = rows([choice("Q4_K_M", GIB), choice("Q8_0", 2 * GIB, missing=1)], None, 4096, 1, [gpu(24 * GIB, 24 * GIB)])
    chosen = recommended(found)
    assert chosen is not None and chosen.label == "Q4_K_M"
    assert "1 of its parts is missing" in lines(found, chosen, Output())[2]


def test_where_there_is_nothing_else_the_exact_one_is_taken() -> None:
    """A repository with one file in F16."""
    found = rows([choice("F16", GIB)], None, 4096, 1, [gpu(24 * GIB, 24 * GIB)])
    chosen = recommended(found)
    assert isinstance(chosen, Row) and chosen.label == "F16"
