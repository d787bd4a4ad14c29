"""Which models a command is about whose words name models or engines."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gpud.core.errors import GpudError, NoSuchModel

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

LLAMA = ("llama_server", "embedded", "llama_cpp")

FAMILIES = {"llamacpp": LLAMA, "llama-cpp": LLAMA, "llama.cpp": LLAMA, "llamacpp-turbo": LLAMA}
"""Names that people know llama.cpp's engines by, whichever of them serves a model."""


async def known(gpud: "Gpud", names: Sequence[str]) -> list[dict[str, Any]]:
    """The models among which those are that are meant: all there are, where a name may be an engine's."""
    from gpud.cli.client import named

    few: list[dict[str, Any]] = (await gpud.overview(*names))["Models"]
    return few if all(named(few, name) for name in names) else await gpud.models()


async def models(
    gpud: "Gpud", records: list[dict[str, Any]], names: Iterable[str], doing: str, *, of_engine: Collection[str]
) -> list[dict[str, Any]]:
    """The models that are meant, each once; an engine stands for those of its models that are in one of these states.
    A model of a name comes before an engine of it. Raises NoSuchModel; ``doing`` is what cannot be done then.
    """
    from gpud.cli.client import named

    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if model := named(records, name):
            found[model["Id"]] = model
        elif called := engines(records, name):
            theirs = (one for one in records if one["Backend"] in called and one["State"] in of_engine)
            found |= {record["Id"]: record for record in theirs}
        else:
            raise await _unknown(gpud, records, name, doing)
    return list(found.values())


def engines(records: Iterable[dict[str, Any]], name: str) -> set[str]:
    """Those that serve a model and are called so."""
    called = FAMILIES.get(name, (name.replace("-", "_"), name))
    return {record["Backend"] for record in records} & set(called)


async def _unknown(gpud: "Gpud", records: list[dict[str, Any]], name: str, doing: str) -> GpudError:
    if name in FAMILIES or name.replace("-", "_") in (*LLAMA, "ollama"):
        return NoSuchModel(
            f'cannot {doing} "{name}": no model is served by it', hint='"gpudctl models" lists what there is'
        )
    try:
        await gpud.about(name)
    except NoSuchModel as problem:
        serving = ", ".join(sorted({record["Backend"] for record in records})) or "none"
        return NoSuchModel(
            f'cannot {doing} "{name}": no engine is called so (engines that serve models: {serving}), '
            f"and {problem.message}"
        )
    return NoSuchModel(f'cannot {doing} "{name}": it has just been added', hint="run it again")
