"""text-generation-inference as an engine: what its command line, metrics and log are like. Driven by ``serving``.

Its makers have archived it. It fills the part of the GPU that ``--cuda-memory-fraction`` allows, so that is what it is
told. It listens on no socket of its own: it gets a loopback port and a key, which it hands on to its router on a
command line that everybody on the machine may read.
"""

import re
from collections.abc import Mapping

from gpud.backends import runner
from gpud.backends.budget import DEFAULT_CONTEXT
from gpud.backends.dialect import VALUE, Dialect, Start
from gpud.backends.options import EngineOptions
from gpud.backends.serving import HubServer
from gpud.core.ports import Launcher

OWN_FLAGS = (
    "-p",
    "--num-shard",
    "--sharded",
    "--max-input-tokens",
    "--max-input-length",
    "--max-total-tokens",
    "--max-batch-size",
    "--json-output",
    "--env",
)
"""It takes no flag twice; the last two change what it says, and gpud reads that."""


def command(start: Start) -> tuple[str, ...]:
    settings = start.model.settings
    context = settings.context or DEFAULT_CONTEXT
    share = start.budget.share_of(None if start.gpu is None else start.gpu.total_bytes)
    flags = ["--model-id", start.target, "--hostname", start.endpoint.host, "--port", str(start.endpoint.port)]
    # Between its own processes; the defaults are the same for all that run.
    flags += ["--shard-uds-path", start.scratch, "--master-port", str(runner.free_port()), "--num-shard", "1"]
    flags += ["--max-total-tokens", str(context), "--max-input-tokens", str(context - 1)]
    if share is not None:
        flags += ["--cuda-memory-fraction", f"{share:.4f}"]
    if settings.parallel is not None:
        flags += ["--max-batch-size", str(settings.parallel)]
    return (start.program, *flags, *settings.extra_flags)


def environment(start: Start) -> Mapping[str, str]:
    return {
        "API_KEY": start.endpoint.key,
        "USAGE_STATS": "off",
        # Its lines go to the journal.
        "NO_COLOR": "1",
        "LOG_COLORIZE": "0",
    }


TGI = Dialect(
    name="tgi",
    title="text-generation-inference",
    program="text-generation-launcher",
    command=command,
    environment=environment,
    gauges=re.compile(
        rb"^tgi_(?:batch_current_size|(?P<waits>queue_size))" + VALUE,
        re.MULTILINE,
    ),
    stages=(
        (re.compile(r"Starting (?:check and )?download process"), "downloading"),
        (re.compile(r"Starting shard"), "weights"),
        (re.compile(r"Shard ready in "), "warming up"),
    ),
    ready=re.compile(r"\bConnected\b"),
    own_flags=OWN_FLAGS,
)


def tgi(options: EngineOptions, launcher: Launcher) -> HubServer:
    return HubServer(TGI, options, launcher)
