"""The record of llama.cpp, in JSON and as a table, as real builds printed it, and as no build should."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.backends.llama_record import MIB, RecordReader
from gpud.core.plan import Plan
from gpud.core.quote import Estimate, Part, Source

TABLE = """\
| memory breakdown [MiB] | total   free     self   model   context   compute    unaccounted |
|   - Host               |                 10317 =  8137 +    2048 +     132                |
"""
HEAD, HOST = (f"common_memory_breakdown_print: {line}" for line in TABLE.splitlines())
DONE = "common_params_fit_impl: projected to use 10317 MiB of host memory vs. 24105 MiB of total host memory"

OLD_TABLE = """\
| memory breakdown [MiB] | total   free     self   model   context   compute    unaccounted |
|   - CUDA0 (RTX 5090)   | 32606 = 1057 + (29365 = 28609 +     397 +     358) +        2183 |
|   - CUDA1 (RTX 4090 (x)) | 24111 = 23667 + (5437 =  4685 +     512 +     239) + 17592186029324 |
|   - Host               |                 30956 = 30940 +       0 +      16                |
|   - CPU_REPACK         |                     5 =     3 +       0 +       2                |
|   - CUDA1_Split        |                     8 =     8 +       0 +       0                |
"""
OLD = (
    "llama_params_fit_impl: getting device memory data for initial parameters:",
    *(f"llama_memory_breakdown_print: {line}" for line in OLD_TABLE.splitlines()),
    "llama_params_fit_impl: projected to use 34802 MiB of device memory vs. 24724 MiB of free device memory",
)


def heard(*lines: str, plan: Plan | None = None, **sizes: int) -> Estimate | None:
    """The record that comes out of these lines; it must come once."""
    reader = RecordReader(plan or Plan(), **sizes)
    found = [estimate for line in lines if (estimate := reader.line(line)) is not None]
    assert len(found) <= 1
    return found[0] if found else None


def record(*rows: dict[str, object]) -> str:
    return json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": list(rows)}})


def log(text: str) -> str:
    return json.dumps({"type": "log", "time": 1, "level": "info", "msg": text + "\n"})


def row(kind: str, name: str, model: int, context: int, compute: int) -> dict[str, object]:
    return {"kind": kind, "name": name, "model": model, "context": context, "compute": compute}


def test_a_table_of_the_host_alone() -> None:
    """The last line of it is known by the line after; the log's prefix does not matter."""
    expected = Estimate("", (Part("Host", None, 8137 * MIB, 2048 * MIB, 0, 132 * MIB),), Source.PROBE, context=7)
    for prefix in ("", "0.00.012.215 I "):
        assert heard(*(prefix + line for line in (HEAD, HOST, DONE)), plan=Plan(context=7)) == expected
    assert heard(HEAD, HOST) is None


def test_a_table_of_an_older_build_with_gpus() -> None:
    """Devices in the engine's order, without their descriptions; further buffers belong to their device or the host."""
    estimate = heard(*OLD)
    assert estimate is not None
    assert estimate.parts == (
        Part("CUDA0", 0, 28609 * MIB, 397 * MIB, 0, 358 * MIB),
        Part("CUDA1", 1, 4693 * MIB, 512 * MIB, 0, 239 * MIB),
        Part("Host", None, 30943 * MIB, 0, 0, 18 * MIB),
    )


def test_a_record_in_json() -> None:
    """The table in the log beside it counts nothing."""
    rows = (row("device", "CUDA0", 5, 4, 3), row("host", "Host", 2, 0, 1), row("buffer_type", "CPU_REPACK", 1, 0, 0))
    estimate = heard(log(HEAD), log(HOST), record(*rows), log(DONE))
    assert estimate is not None
    assert estimate.parts == (Part("CUDA0", 0, 5 * MIB, 4 * MIB, 0, 3 * MIB), Part("Host", None, 3 * MIB, 0, 0, MIB))


def test_a_context_that_was_settled_later_replaces_the_first_record() -> None:
    """An engine without -c and with several slots measures twice."""
    settled = log("common_params_fit_impl: context size unset and KV cache not unified -> using 65536 for 2 sequences:")
    estimate = heard(record(row("host", "Host", 1, 8, 1)), settled, record(row("host", "Host", 1, 16, 2)), log(DONE))
    assert estimate is not None
    assert estimate.parts == (Part("Host", None, MIB, 16 * MIB, 0, 2 * MIB),)


def test_a_draft_model_is_added() -> None:
    """Its record follows with a line of its own."""
    extra = log("operator(): getting device memory data for the extra model at a context size of 4096:")
    main = record(row("device", "CUDA0", 10, 5, 1), row("host", "Host", 1, 0, 0))
    draft = record(row("device", "CUDA0", 2, 1, 1), row("host", "Host", 3, 0, 0))
    estimate = heard(main, extra, draft, log(DONE))
    assert estimate is not None
    assert estimate.parts == (Part("CUDA0", 0, 12 * MIB, 6 * MIB, 0, 2 * MIB), Part("Host", None, 4 * MIB, 0, 0, 0))


def test_what_is_measured_while_it_is_made_to_fit_does_not_count() -> None:
    """Nor what it prints at its end."""
    assert heard(HEAD, HOST, DONE, HEAD, HOST.replace("8137", "   1"), DONE) is not None


def test_a_projector_and_adapters_are_added() -> None:
    """The engine says what the projector takes and leaves it out of its record; of adapters it says nothing."""
    said = "srv load_model: [mtmd] estimated worst-case memory usage of mmproj is 1.50 MiB (took 5.12 ms)"
    host = record(row("host", "Host", 1, 0, 0))
    estimate = heard(log(said), host, log(DONE), adapter_bytes=MIB, projector_bytes=MIB)
    assert estimate is not None
    assert estimate.parts == (Part("Host", None, 3 * MIB, 0, 0, MIB // 2),)
    on = "srv load_model: [mtmd] adding 1.50 MiB to fit_params_target for device CUDA1"
    gpus = record(row("device", "CUDA0", 3, 0, 0), row("device", "CUDA1", 1, 0, 0), row("host", "Host", 0, 0, 0))
    estimate = heard(log(said), log(on), gpus, log(DONE), adapter_bytes=4 * MIB, projector_bytes=MIB)
    assert estimate is not None
    assert [part.weights_bytes for part in estimate.parts] == [6 * MIB, 3 * MIB, 0]
    assert [part.compute_bytes for part in estimate.parts] == [0, MIB // 2, 0]


def test_what_was_heard_of_an_engine_that_went_silent() -> None:
    """A record whose end nobody marked."""
    reader = RecordReader(Plan())
    assert reader.so_far() is None
    reader.line(HEAD)
    reader.line(HOST)
    estimate = reader.so_far()
    assert estimate is not None
    assert estimate.total_bytes == 10317 * MIB


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"fit_memory_breakdown"}',
        '{"type":"fit_memory_breakdown","data":{"unit":"GiB","rows":[]}}',
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[1]}}',
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":{}}}',
        record(row("host", "Host", -1, 0, 0)),
        record(row("host", "Host", 1 << 60, 0, 0)),
        record({"kind": "host", "name": "Host", "model": True, "context": 0, "compute": 0}),
        record({"kind": "host", "name": 5, "model": 1, "context": 0, "compute": 0}),
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[{"model":' + "9" * 5000 + "}]}}",
        "{" * 5000,
        "[" * 100_000,
        "{}",
        '{"type":"log","msg":7}',
        f"|   - Host               |  1 = {'9' * 5000} + 2048 + 132  |",
    ],
)
def test_what_is_no_record_is_none(line: str) -> None:
    """Damaged, hostile, or of another program: it is a line of output, nothing more."""
    assert heard(line, HEAD, line, DONE) is None


@given(st.lists(st.one_of(st.text(), st.sampled_from([HEAD, HOST, DONE, *OLD, record()])), max_size=20))
def test_any_output_is_survived(lines: list[str]) -> None:
    """Whatever is printed in whatever order; sizes are never negative."""
    estimate = heard(*lines)
    if estimate is not None:
        assert all(part.total_bytes >= 0 for part in estimate.parts)
        assert estimate.parts[-1].gpu is None
