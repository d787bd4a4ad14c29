"""The engine that comes with gpud: the xllamacpp wheel's server in a child, driven like a llama-server.

Decides only what is started; everything else is ``llama_server.py``'s.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from gpud.backends.llama_server import LlamaServer, Program
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.ports import Launcher

PROGRAM = Path(__file__).with_name("embedded_server.py")

INSTALL = 'pip install "kernelcore-gpud[embedded]"'


def embedded(options: EngineOptions, launcher: Launcher) -> LlamaServer:
    """The factory of engine ``embedded``."""

    def argv(model: Model) -> tuple[str, ...]:
        # By path and with -P: the child finds the wheel of its interpreter and nothing that lies about where it starts.
        if options.python:
            return (options.python, "-P", str(PROGRAM))
        if find_spec("xllamacpp") is None:
            raise BackendFailed(
                f'cannot load "{model.name}": the Python package xllamacpp is not installed for {sys.executable}',
                hint=INSTALL,
                kind="package-missing",
                preflight=True,
            )
        return (sys.executable, "-P", str(PROGRAM))

    return LlamaServer(options, launcher, name="embedded", program=Program("gpud-embedded-server", argv))
