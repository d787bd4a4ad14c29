"""The engine that comes with gpud: the xllamacpp wheel's server in a child, driven like a llama-server.

Decides only what is started; everything else is ``llama_server.py``'s.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from gpud.backends.llama_build import Program
from gpud.backends.llama_server import LlamaServer
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.ports import Launcher

PROGRAM = Path(__file__).with_name("embedded_server.py")

WHEEL = "site-packages/xllamacpp/__init__.py"

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

    def belongings() -> tuple[str, ...]:
        # The wheel is replaced without a change to the interpreter or to our program.
        if options.python:
            return tuple(str(path) for path in Path(options.python).parent.parent.glob(f"lib*/python3*/{WHEEL}"))
        found = find_spec("xllamacpp")
        return (found.origin,) if found is not None and found.origin else ()

    program = Program("gpud-embedded-server", argv, belongings, widens=True)
    return LlamaServer(options, launcher, name="embedded", program=program)
