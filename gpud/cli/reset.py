"""``gpudctl reset``: has the failures of models forgotten."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli import meant
from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, BusError, Usage
from gpud.cli.output import Output
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Clear the failures of models whose engine crashed or could not be started: they
become unloaded, their attempts count from zero, and the next request or load
tries them again. ENGINE stands for all of its models that have failed,
"llamacpp" for those of every llama.cpp engine. A loaded model is not affected."""

EXAMPLES = (
    "gpudctl reset big",
    "gpudctl reset big && gpudctl load --context 4096 big",
    "gpudctl reset llamacpp             # all of llama.cpp that have failed",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("names", metavar="MODEL|ENGINE", nargs="+", help="name or alias of a model, or an engine")


def run(arguments: Namespace, output: Output) -> int:
    if not all(arguments.names):
        raise Usage("reset: the model's name is empty", hint='name a model; "gpudctl models" lists them')
    from gpud.cli import client

    return client.run(lambda gpud: reset(gpud, arguments.names, output), arguments.bus)


async def reset(gpud: "Gpud", names: Sequence[str], output: Output) -> int:
    await gpud.subscribe()
    records = await meant.known(gpud, names)
    wanted = await meant.models(gpud, records, names, "reset", of_engine=("failed",))
    for record in wanted:
        if record["State"] not in ("failed", "unloaded"):
            model = record["Id"]
            raise GpudError(
                f'cannot reset "{model}": it is {record["State"]}, not failed',
                hint=f'"gpudctl unload {model}" unloads it',
            )
    if not wanted:
        output.result(f"no model of {', '.join(names)} has failed: nothing to reset", {"reset": [], "unchanged": []})
        return DONE
    return await _forget(gpud, wanted, output)


async def _forget(gpud: "Gpud", records: Sequence[dict[str, Any]], output: Output) -> int:
    from gpud.cli import jobs as waiting

    attempts = {record["Id"]: record.get("Attempts", 0) for record in records}
    jobs: dict[int, str] = {}
    unchanged: list[str] = []
    for model in attempts:
        try:
            (job,) = await gpud.call("Unload", "s", model, asks=True)
            jobs[int(job)] = model
        except BusError as error:
            if error.code != "not-loaded":
                raise
            unchanged.append(model)
    ended = await waiting.finish(gpud, jobs) if jobs else []
    lines = [f'"{model}" had not failed: nothing to reset' for model in unchanged]
    for one in ended:
        if one.done:
            tried = attempts[one.model]
            failures = f" after {plural(tried, 'failed attempt')}" if tried > 1 else ""
            lines.append(f'reset "{one.model}"{failures}: the next request tries it again')
        else:
            output.note(f"gpudctl: {one.sentence('resetting')}")
    done = [one.model for one in ended if one.done]
    output.result("\n".join(lines), {"reset": done, "unchanged": unchanged})
    return DONE if len(done) == len(ended) else FAILED
