"""The simulator: its physics by hand, the rules of others by their marks, its files and figures."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.simulate import cost
from bench.simulate.__main__ import main
from bench.simulate.driver import LIMITS
from bench.simulate.physics import UNLOAD_S
from bench.simulate.report import Figures, percentile
from bench.simulate.run import POLICIES, simulate
from bench.simulate.trace import (
    GIB,
    BadInput,
    Request,
    SimulatedModel,
    generate,
    read_models,
    read_trace,
    write,
)

EVERYBODY = sorted(POLICIES)


def table(**sizes_gib: float) -> dict[str, SimulatedModel]:
    """Models that take two seconds to load."""
    return {name: SimulatedModel(name, int(size * GIB), 2.0) for name, size in sizes_gib.items()}


def play(
    policy: str, models: dict[str, SimulatedModel], trace: Sequence[Request], gib: float = 16, slots: int = 1
) -> Figures:
    return simulate(policy, models, trace, int(gib * GIB), slots)


# Physics


@pytest.mark.parametrize("policy", EVERYBODY)
def test_a_wait_is_a_service_an_unload_and_a_load(policy: str) -> None:
    """Whoever decides: the second model waits for the first one's request, for its memory and for its own load."""
    found = play(policy, table(a=10, b=10), [Request(0, "a", 1.0), Request(1, "b", 1.0)])
    assert found.max_wait_s_by_model == {"a": pytest.approx(2.0), "b": pytest.approx(2.0 + UNLOAD_S + 2.0)}
    assert (found.loads, found.evictions, found.reload_bytes, found.refused) == (2, 1, 0, 0)


@pytest.mark.parametrize("policy", sorted({*POLICIES} - {"ollama"}))
def test_models_that_fit_together_load_and_answer_at_the_same_time(policy: str) -> None:
    """Nobody waits for anything but the own load."""
    found = play(policy, table(a=7, b=7), [Request(0, "a", 1.0), Request(0, "b", 1.0)])
    assert found.max_wait_s_by_model == {"a": pytest.approx(2.0), "b": pytest.approx(2.0)}


@pytest.mark.parametrize(("slots", "last_s"), [(1, 4.0), (2, 3.0), (3, 2.0)])
def test_a_model_answers_in_slots(slots: int, last_s: float) -> None:
    """The third request waits for the first free slot."""
    trace = [Request(0, "a", 1.0)] * 3
    for policy in EVERYBODY:
        assert play(policy, table(a=7), trace, slots=slots).max_wait_s == pytest.approx(last_s)


@pytest.mark.parametrize("policy", EVERYBODY)
def test_what_is_larger_than_the_gpu_is_refused(policy: str) -> None:
    """At once, and nobody else waits for it."""
    found = play(policy, table(a=7, huge=17), [Request(0, "huge", 1.0), Request(0, "a", 1.0)])
    assert (found.refused, found.loads) == (1, 1)
    assert found.max_wait_s == pytest.approx(2.0)


@pytest.mark.parametrize("policy", EVERYBODY)
def test_every_request_is_answered_and_the_figures_are_the_same_again(policy: str) -> None:
    """With a real crowd: nobody is forgotten (the machine insists), and nothing depends on chance."""
    models, trace = generate(5, 0.5)
    first = play(policy, models, trace, 22)
    assert first.refused == 0
    assert first.p50_wait_s <= first.p95_wait_s <= first.p99_wait_s <= first.max_wait_s
    assert play(policy, models, trace, 22) == first


# Who decides how


def test_lru_holds_up_everybody_behind_the_first() -> None:
    """A request for a loaded model waits behind one that waits for memory; under llama-swap and gpud it does not."""
    trace = [Request(0, "a", 6.0), Request(3, "b", 1.0), Request(4, "c", 1.0)]
    models = table(a=10, b=10, c=2)
    warm = [Request(0, "c", 0.0), *trace]
    assert play("lru", models, warm).max_wait_s_by_model["c"] > 4
    for policy in ("llama-swap", "gpud"):
        waits = play(policy, models, [*warm, Request(5, "c", 1.0)]).max_wait_s_by_model
        assert waits["c"] == pytest.approx(2.0)


def test_a_loaded_model_starves_others_under_llama_swap_but_not_under_gpud() -> None:
    """Requests overlap for two minutes, so that the model is never idle: gpud gives the other one its turn."""
    models = table(hot=10, cold=10)
    trace = [Request(number * 0.9, "hot", 1.0) for number in range(130)]
    trace = sorted([*trace, Request(5.0, "cold", 1.0)], key=lambda request: request.t)
    starved = play("llama-swap", models, trace, slots=2).max_wait_s_by_model["cold"]
    served = play("gpud", models, trace, slots=2).max_wait_s_by_model["cold"]
    assert starved > 110
    assert served <= LIMITS.queue.turn_s + 1.0 + UNLOAD_S + 2.0 + 0.1


def test_the_clairvoyant_keeps_what_comes_next() -> None:
    """Of two idle models the one whose next request is farther away goes, though it was used last."""
    trace = [Request(0, "soon", 1.0), Request(4, "late", 1.0), Request(10, "other", 1.0)]
    trace += [Request(20, "soon", 1.0), Request(60, "late", 1.0)]
    models = table(soon=7, late=7, other=7)
    assert play("clairvoyant", models, trace).loads == 4
    assert play("lru", models, trace).loads == 5


def test_gdsf_keeps_what_is_used_often() -> None:
    """A model with many uses outlives one that was used once, and last."""
    trace = [Request(float(second), "often", 0.1) for second in range(10)]
    trace += [Request(12, "once", 0.1), Request(20, "other", 0.1), Request(30, "often", 0.1)]
    models = table(often=7, once=7, other=7)
    assert play("gdsf", models, trace).loads == 3
    assert play("lru", models, trace).loads == 4


def test_ollama_wants_a_fifth_of_the_free_memory_left() -> None:
    """7 GiB do not fit into 8.5: the other model goes, which LRU keeps."""
    trace = [Request(0, "a", 1.0), Request(10, "b", 1.0)]
    models = table(a=7.5, b=7)
    assert play("ollama", models, trace).evictions == 1
    assert play("lru", models, trace).evictions == 0


def test_ollama_sends_away_by_name() -> None:
    """The model that was used last goes because its name comes first."""
    trace = [Request(0, "b", 0.1), Request(4, "a", 0.1), Request(8, "c", 0.1), Request(20, "a", 0.1)]
    models = table(a=4, b=4, c=8)
    assert play("ollama", models, trace).loads == 4
    assert play("lru", models, trace).loads == 3


def test_llama_swap_sends_away_as_few_as_possible() -> None:
    """One large model, though two small ones were used longer ago."""
    trace = [Request(float(4 * number), name, 0.1) for number, name in enumerate(("s1", "s2", "large", "new"))]
    models = table(s1=4, s2=4, large=8, new=8)
    assert play("llama-swap", models, trace).evictions == 1
    assert play("lru", models, trace).evictions == 2


@pytest.mark.parametrize("gib", [22, 46])
def test_gpud_keeps_people_waiting_for_less_than_lru(gib: int) -> None:
    """On an hour of the published workload; the whole table takes minutes, and is in docs/scheduling.md."""
    models, trace = generate(3, 1)
    gpud, lru = play("gpud", models, trace, gib), play("lru", models, trace, gib)
    assert gpud.mean_wait_s < 0.95 * lru.mean_wait_s
    assert gpud.p95_wait_s <= lru.p95_wait_s


# Files


def test_what_is_generated_can_be_read_back(tmp_path: Path) -> None:
    """The same models and requests; another seed gives others."""
    models, trace = generate(1, 1)
    write(tmp_path / "new" / "folder", models, trace)
    assert read_models(tmp_path / "new/folder/models.csv") == models
    assert read_trace(tmp_path / "new/folder/trace.csv", models) == trace
    assert generate(2, 1)[1] != trace == generate(1, 1)[1]


def test_columns_and_lines_may_come_in_any_order(tmp_path: Path) -> None:
    """As spreadsheets write them: with a mark at the beginning, other columns, blanks and empty lines."""
    path = tmp_path / "trace.csv"
    path.write_text("\ufeffmodel, service_s ,t,note\r\na, 1.5 ,9,x\r\n\r\na,2,3,\r\n", encoding="utf-8")
    assert read_trace(path, table(a=1)) == [Request(3, "a", 2), Request(9, "a", 1.5)]


BAD_MODELS = {
    "": "line 1: column name, bytes, load_s is missing; found nothing, expected name,bytes,load_s",
    "name,bytes\na,1\n": "line 1: column load_s is missing; found name, bytes, expected name,bytes,load_s",
    "name,bytes,load_s\n": "there is no line below the header",
    "name,bytes,load_s\na,1\n": "line 2: 2 cells, the header has 3",
    "name,bytes,load_s\n,1,1\n": 'line 2, column name: "" is empty',
    "name,bytes,load_s\na,1,1\na,2,1\n": 'line 3, column name: "a" is there twice',
    "name,bytes,load_s\na,7 GB,1\n": 'line 2, column bytes: "7 GB" is not a number',
    "name,bytes,load_s\na,0,1\n": 'line 2, column bytes: "0" must be more than 0',
    "name,bytes,load_s\na,1.5,1\n": 'line 2, column bytes: "1.5" is not a whole number of bytes',
    "name,bytes,load_s\na,1,-1\n": 'line 2, column load_s: "-1" must be at least 0',
    "name,bytes,load_s\na,1,nan\n": 'line 2, column load_s: "nan" is not a finite number',
}
BAD_TRACES = {
    "t,model\n1,a\n": "line 1: column service_s is missing; found t, model, expected t,model,service_s[,caller]",
    "t,model,service_s\n1,b,1\n": 'line 2, column model: "b" is not in the table of models',
    "t,model,service_s\n1,a,1\n-2,a,1\n": 'line 3, column t: "-2" must be at least 0',
    "t,model,service_s\n1,a,inf\n": 'line 2, column service_s: "inf" is not a finite number',
    "t,model,service_s\n1,a,\n": 'line 2, column service_s: "" is not a number',
}


@pytest.mark.parametrize("text", BAD_MODELS)
def test_a_bad_table_of_models_is_blamed_by_line_and_column(tmp_path: Path, text: str) -> None:
    """With the file, the value and what is wrong with it."""
    path = tmp_path / "models.csv"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_models(path)
    assert str(caught.value) in (f"{path}, {BAD_MODELS[text]}", f"{path}: {BAD_MODELS[text]}")


@pytest.mark.parametrize("text", BAD_TRACES)
def test_a_bad_trace_is_blamed_by_line_and_column(tmp_path: Path, text: str) -> None:
    """With the file, the value and what is wrong with it."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_trace(path, table(a=1))
    assert str(caught.value) == f"{path}, {BAD_TRACES[text]}"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Or one that is not there at all."""
    path = tmp_path / "models.csv"
    with pytest.raises(BadInput, match="No such file"):
        read_models(path)
    path.write_bytes(b"name,bytes,load_s\n\xff,1,1\n")
    with pytest.raises(BadInput, match="byte 18 is not UTF-8"):
        read_models(path)


# The command

ASKED = {"mean_wait_s", "p50_wait_s", "p95_wait_s", "max_wait_s", "loads", "reload_bytes", "refused"}


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From generated files to the figures of all six policies, and nothing else on standard output."""
    assert main(["generate", "--seed", "3", "--hours", "0.2", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    files = ["--models", str(tmp_path / "models.csv"), "--trace", str(tmp_path / "trace.csv")]
    assert main([*files, "--vram-gib", "22", "--policy", "all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"policies"}
    assert set(said["policies"]) == {"gpud", "lru", "ollama", "llama-swap", "gdsf", "clairvoyant"}
    assert all(set(found) >= ASKED for found in said["policies"].values())
    assert main([*files, "--vram-gib", "22", "--policy", "gpud"]) == 0
    text = capsys.readouterr().out
    assert f"{said['policies']['gpud']['mean_wait_s']:.2f}" in text
    assert "lru" not in text


def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line on standard error."""
    path = tmp_path / "none.csv"
    assert main(["--models", str(path), "--trace", str(path), "--vram-gib", "22"]) == 2
    assert capsys.readouterr().err == f"bench.simulate: cannot read {path}: No such file or directory\n"


@pytest.mark.parametrize("gib", ["0", "-1", "nan", "much"])
def test_the_command_refuses_a_gpu_of_nothing(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told as any wrong argument is."""
    with pytest.raises(SystemExit):
        main(["--models", "m", "--trace", "t", "--vram-gib", gib])
    assert f"invalid number above 0 value: '{gib}'" in capsys.readouterr().err


def test_the_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    """One table for each GPU, a line for each policy."""
    assert main(["table", "--seeds", "1", "--hours", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")] == [
        *("22 GiB", "---", *POLICIES),
        *("46 GiB", "---", *POLICIES),
    ]


def test_the_cost_of_a_decision_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """For each kind of event that a request brings."""
    cost.run(["--models", "30", "--loaded", "5", "--waiting", "10"])
    said = capsys.readouterr().out
    for kind in ("UseBegan", "UseEnded", "LoadAsked", "Sampled", "next_deadline()"):
        assert f"\n{kind} " in said


def test_percentiles_are_values_that_were_there() -> None:
    """The nearest rank: half of four values do not exceed the second."""
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert percentile([], 0.5) == 0.0
