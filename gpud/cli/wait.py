"""``gpudctl wait``: returns when a model has reached a state. It follows the daemon's signals and asks once."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, duration
from gpud.cli.exits import DONE
from gpud.cli.output import Output, span
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Wait until a model is ready or unloaded, without loading or unloading it.
Waiting for "ready" ends with status 1 if the model has failed and gpud does
not try it again by itself. A timeout also ends with status 1."""

EXAMPLES = (
    "gpudctl load --no-wait big && gpudctl wait big && ./ask-big.sh",
    "gpudctl wait --state unloaded --timeout 10m big",
)

WANTED = {"ready": ("ready", "busy"), "unloaded": ("unloaded", "failed")}
"""Which of the daemon's words fulfil a wish: a busy model answers, a failed one holds no memory."""


class TookTooLong(GpudError):
    code = "timeout"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name or alias of a model")
    parser.add_argument("--state", choices=tuple(WANTED), default="ready", help="state to wait for (default: ready)")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="give up after TIME (90s, 10m, 1h)")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    return client.run(lambda gpud: wait(gpud, arguments, output), arguments.bus)


async def wait(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    import asyncio

    await gpud.subscribe()
    record, _ = await gpud.about(arguments.model)
    seen = record["State"]
    try:
        async with asyncio.timeout(arguments.timeout or None):
            while seen not in WANTED[arguments.state]:
                if seen == "failed" and not record["RetryAtUSec"]:
                    raise _failed(record)
                await _change(gpud, record["Id"], seen)
                # Asked again in place of believing the signal: it says neither why nor whether there is a next try.
                record, _ = await gpud.about(record["Id"])
                seen = record["State"]
    except TimeoutError:
        raise TookTooLong(
            f'"{arguments.model}" is still {seen} after {span(arguments.timeout)}, not {arguments.state}',
            hint=f'"gpudctl status {arguments.model}" shows more',
        ) from None
    output.result(f'"{record["Id"]}" is {seen}', {"model": record["Id"], "state": seen})
    return DONE


async def _change(gpud: "Gpud", model: str, state: str) -> None:
    """Return when the model's state may be another one."""
    from gpud.cli.client import asks_for_models, changed_models

    while True:
        signal = await gpud.next_signal()
        if (signal.member == "ModelStateChanged" and signal.body[0] == model) or asks_for_models(signal):
            return
        models = changed_models(signal)
        if models is None:
            continue
        record = next((record for record in models if record["Id"] == model), None)
        if record is None or record["State"] != state or (state == "failed" and not record["RetryAtUSec"]):
            return


def _failed(record: dict[str, Any]) -> GpudError:
    hint = record.get("ErrorHint") or f'"gpudctl log {record["Id"]}" shows its messages'
    return GpudError(f'"{record["Id"]}" has failed: {record.get("Error") or "the reason is unknown"}', hint=hint)
