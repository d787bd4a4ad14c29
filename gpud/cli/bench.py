"""``gpudctl bench``: measures how fast a model answers through the front door, as its clients see it."""

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, whole
from gpud.cli.exits import DONE, FAILED
from gpud.cli.output import Output, span
from gpud.core.counts import plural
from gpud.core.errors import GpudError
from gpud.core.record import Record, field

if TYPE_CHECKING:
    from gpud.cli.http import Door, Question

DESCRIPTION = """\
Measure how fast a model answers over HTTP, as its clients see it. A first
request, which is not counted, loads the model. Each of the others has a prompt
that no cache knows. No request starts after ten minutes. The times are
measured here: they include gpud and the wait for a free slot."""

EXAMPLES = (
    "gpudctl bench qwen3-8b",
    "gpudctl bench qwen3-8b --requests 32 --parallel 4 --tokens 256",
    "gpudctl bench tiny --json | jq .generation_tokens_per_s",
)

BOUND_S = 600.0
"""After this long no further request is begun. Who wants to know more asks again."""

_WORDS = "the quick brown fox jumps over the lazy dog while five boxing wizards vex a sphinx of black quartz and "
PROMPT = _WORDS * 6
"""Some 150 tokens for most models: long enough that reading it can be timed, and it fits into any context."""


def add_arguments(parser: Parser) -> None:
    from gpud.cli.http import add_door_arguments

    parser.add_argument("model", metavar="MODEL", help="name or alias of a model")
    parser.add_argument(
        "--requests", metavar="N", type=whole(1, 10_000), default=8, help="number of requests to measure (default: 8)"
    )
    parser.add_argument(
        "--parallel", metavar="N", type=whole(1, 256), default=1, help="number of concurrent requests (default: 1)"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=whole(2, 1 << 16), default=128, help="tokens of each answer (default: 128)"
    )
    add_door_arguments(parser)


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli.http import Door

    bench = Bench(Door.of(arguments), arguments.model, arguments.tokens)
    if output.is_terminal and not output.wants_json:
        output.note(f'loads "{arguments.model}" and sends {plural(arguments.requests, "request")}')
    began_s = time.monotonic()
    bench.warm_up()
    warm_up_s = time.monotonic() - began_s
    began_s = time.monotonic()
    bench.run(arguments.requests, min(arguments.parallel, arguments.requests))
    measured = Result(
        arguments.model,
        bench.door.address.url,
        arguments.parallel,
        arguments.tokens,
        warm_up_s,
        time.monotonic() - began_s,
        arguments.requests,
        bench.samples,
        bench.problems,
    )
    if not measured.samples:
        raise bench.problems[0]
    output.result("\n".join(measured.lines()), measured.data())
    for problem in bench.problems[:1]:
        if not output.wants_json:
            output.note(f"gpudctl: {plural(len(bench.problems), 'request')} failed; the first error: {problem.text}")
    return FAILED if bench.problems else DONE


# Measuring -----------------------------------------------------------------------------------------------------------


class Sample(Record):
    """One answer: times from its request on. ``counted``: by the engine; else each event is taken for a token."""

    first_s: float
    last_s: float
    prompt_tokens: int
    generated_tokens: int
    counted: bool


class Bench:
    """Sends requests and keeps what was measured."""

    def __init__(self, door: "Door", model: str, tokens: int) -> None:
        self.door = door
        self.samples: list[Sample] = []
        self.problems: list[GpudError] = []
        self._model = model
        self._tokens = tokens
        self._open: set[Question] = set()
        # Prompts of this run are those of no other run.
        self._run = time.time_ns()

    def warm_up(self) -> None:
        """Have the model loaded. Raises GpudError."""
        self._measure(0, 2)

    def run(self, requests: int, parallel: int) -> None:
        """Returns when all are answered. A thread for each of those that are sent at the same time."""
        import threading
        from itertools import count

        numbers = count(1)
        until_s = time.monotonic() + BOUND_S

        def work() -> None:
            while (number := next(numbers)) <= requests and time.monotonic() < until_s:
                try:
                    self.samples.append(self._measure(number, self._tokens))
                except GpudError as problem:
                    self.problems.append(problem)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(parallel)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            # Engines must not go on with what nobody waits for.
            for question in tuple(self._open):
                question.close()
            raise

    def _measure(self, number: int, tokens: int) -> Sample:
        from gpud.cli.chat import PATH, answers

        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"{self._run}.{number} {PROMPT}"}],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            # What follows is llama-server's and vLLM's: an answer is as long as was asked for, a prompt is read anew.
            "ignore_eos": True,
            "cache_prompt": False,
        }
        began_s = time.monotonic()
        first_s = last_s = 0.0
        events = 0
        usage: dict[str, Any] = {}
        question = self.door.stream(PATH, body)
        self._open.add(question)
        try:
            for value in answers(question.events()):
                if any(_says_something(choice) for choice in value.get("choices") or []):
                    last_s = time.monotonic() - began_s
                    first_s = first_s or last_s
                    events += 1
                usage = value.get("usage") or usage
        finally:
            self._open.discard(question)
            question.close()
        if not events:
            raise GpudError(f'"{self._model}" gave an empty answer', hint="there is nothing to time")
        counted = bool(usage.get("completion_tokens"))
        generated = int(usage["completion_tokens"]) if counted else events
        return Sample(first_s, last_s, int(usage.get("prompt_tokens") or 0), generated, counted)


def _says_something(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


# What was measured ---------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 100) * len(ordered) // 100) - 1)]


class Result(Record):
    """All of one run."""

    model: str
    url: str
    parallel: int
    tokens: int
    warm_up_s: float
    wall_s: float
    wanted: int
    samples: list[Sample]
    problems: list[GpudError] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        return self.wanted - len(self.samples) - len(self.problems)

    def data(self) -> dict[str, Any]:
        """Rates are None where nothing can be said: an answer of one token has no rate."""
        samples = self.samples
        prompts = [one.prompt_tokens / one.first_s for one in samples if one.prompt_tokens]
        speeds = [
            (one.generated_tokens - 1) / (one.last_s - one.first_s)
            for one in samples
            if one.generated_tokens > 1 and one.last_s > one.first_s
        ]
        generated = sum(one.generated_tokens for one in samples)
        firsts = [one.first_s for one in samples]
        return {
            "model": self.model,
            "url": self.url,
            "requests": len(samples),
            "failed": len(self.problems),
            "left_out": self.left_out,
            "parallel": self.parallel,
            "tokens": self.tokens,
            "prompt_tokens": sum(one.prompt_tokens for one in samples),
            "generated_tokens": generated,
            "counted_by": "engine" if all(one.counted for one in samples) else "events",
            "warm_up_s": round(self.warm_up_s, 4),
            "wall_s": round(self.wall_s, 4),
            "prompt_tokens_per_s": round(quantile(prompts, 0.5), 2) if prompts else None,
            "generation_tokens_per_s": round(quantile(speeds, 0.5), 2) if speeds else None,
            "total_tokens_per_s": round(generated / self.wall_s, 2),
            "first_token_p50_s": round(quantile(firsts, 0.5), 5),
            "first_token_p95_s": round(quantile(firsts, 0.95), 5),
        }

    def lines(self) -> list[str]:
        """With what each figure is, so that nobody has to guess."""
        data = self.data()
        count = data["requests"]
        each = data["prompt_tokens"] // count
        first = (
            f'"{self.model}" at {self.url}: {plural(count, "request")}, {self.parallel} at a time, '
            f"prompts of {plural(each, 'token') if each else 'unknown length'}, "
            f"answers of {plural(data['generated_tokens'] // count, 'token')}"
        )
        by_event = "" if data["counted_by"] == "engine" else " (counting each event of the stream as a token)"
        prompt, generation, total = (_rate(data[f"{name}_tokens_per_s"]) for name in ("prompt", "generation", "total"))
        p50_ms, p95_ms = (data[f"first_token_{name}_s"] * 1000 for name in ("p50", "p95"))
        lines = [
            first,
            f"prompt       {prompt}: median of a prompt's tokens by the time to the first token",
            f"generation   {generation}: median of an answer from its first token on{by_event}",
            f"in all       {total}: {plural(data['generated_tokens'], 'token')} in {self.wall_s:.2f} s",
            f"first token  {p50_ms:.0f} ms p50, {p95_ms:.0f} ms p95",
            f"warm-up      {self.warm_up_s:.2f} s for the first request, which is not counted, with the load if any",
        ]
        if self.left_out:
            lines.append(f"left out     {plural(self.left_out, 'request')}: the limit of {span(BOUND_S)} was reached")
        return lines


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} tokens/s"
