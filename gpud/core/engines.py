"""What gpud's own engines are, as far as others than their backends have to know. One row an engine; talks to none.

Engines of other packages are not here: of them nothing is known but their names.
"""

from enum import Enum, auto

from gpud.core.record import Record


class Family(Enum):
    """What engines have in common: how they are configured, and what they read."""

    LLAMA_CPP = auto()
    """GGUF files, by llama.cpp itself."""
    OLLAMA = auto()
    """Names in a store of its own."""
    HUB = auto()
    """Folders with SafeTensors, as Hugging Face lays them out."""
    CUSTOM = auto()
    """Whatever its command or address means."""


class EngineKind(Record):
    """``program`` is looked for on the PATH where nobody says where it lies; ``package`` is what Python imports
    instead, and ``extra`` the part of gpud that brings it. ``also`` are its names elsewhere. ``has_metrics``: it
    answers /metrics. ``all_flags``: it knows every flag of llama-server.
    """

    name: str
    family: Family
    program: str = ""
    package: str = ""
    extra: str = ""
    also: tuple[str, ...] = ()
    has_metrics: bool = False
    all_flags: bool = False


ENGINES = (
    EngineKind(
        "llama_server",
        Family.LLAMA_CPP,
        program="llama-server",
        # "llamacpp" is nearer to "llama_cpp" by its letters, but not by what is meant.
        also=("llamacpp", "llama.cpp", "llama-cpp", "llama-server"),
        has_metrics=True,
        all_flags=True,
    ),
    EngineKind("embedded", Family.LLAMA_CPP, package="xllamacpp", extra="embedded", has_metrics=True, all_flags=True),
    EngineKind(
        "llama_cpp",
        Family.LLAMA_CPP,
        package="llama_cpp",
        extra="llama-cpp-python",
        also=("llama-cpp-python", "llama_cpp_python"),
    ),
    EngineKind("ollama", Family.OLLAMA, program="ollama"),
    EngineKind("vllm", Family.HUB, program="vllm", also=("vLLM",), has_metrics=True),
    EngineKind(
        "tgi",
        Family.HUB,
        program="text-generation-launcher",
        also=("TGI", "text-generation-inference", "text-generation-launcher"),
        has_metrics=True,
    ),
    EngineKind("custom", Family.CUSTOM),
)
"""The first choice first."""

BY_NAME = {kind.name: kind for kind in ENGINES}

BUILT_IN = tuple(BY_NAME)

ORDER = tuple(kind.name for kind in ENGINES if kind.family is not Family.CUSTOM)
"""Those that may serve a model for which nobody has named an engine."""


def of_family(*families: Family) -> tuple[str, ...]:
    """The names of their engines, the first choice first."""
    return tuple(kind.name for kind in ENGINES if kind.family in families)


def family(name: str) -> Family | None:
    """None for an engine of another package."""
    kind = BY_NAME.get(name)
    return None if kind is None else kind.family
