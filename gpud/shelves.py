"""Where one gpud looks for models. The part of the composition that is about them; looks at nothing but which folders
there are.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpud.config import Config
from gpud.core.catalogue import Entry, Roots
from gpud.core.facts import Model
from gpud.engine.shelf import Shelf

FOLDERS = ("llamacpp/models", "gguf", "vllm", "tgi", "custom")
"""Those below ``storage.base_directory`` whose models are found by themselves."""

OLLAMA_OF_THE_SYSTEM = "/usr/share/ollama/.ollama/models"
"""Where Ollama's own installer has its service keep them."""


def shelf(
    wanted: Config, engines_here: Callable[[], Sequence[str]], environment: Mapping[str, str], *, user: bool
) -> Shelf:
    """``engines_here`` are asked for once for each look."""
    if not wanted.registry.enable:
        return Shelf(configured=wanted.models)
    found = wanted.found

    def makes() -> Callable[[Entry], Model | str]:
        engines = engines_here()
        return lambda entry: found(entry, engines)

    return Shelf(
        configured=wanted.models,
        roots=roots(wanted, environment, user=user),
        makes=makes,
        interval_s=wanted.registry.scan_interval_s,
        on_start=wanted.registry.scan_on_start,
    )


def roots(wanted: Config, environment: Mapping[str, str], *, user: bool) -> Roots:
    """What is configured, else what is known: below the base directory, and of a user's gpud the user's own."""
    registry, base = wanted.registry, Path(wanted.base_directory)
    home = environment.get("HOME", "") if user else ""

    def own(variable: str, below_home: str) -> Path | None:
        said = environment.get(variable, "")
        if user and said.startswith("/"):
            return Path(said)
        return Path(home) / below_home if home.startswith("/") else None

    data = own("XDG_DATA_HOME", ".local/share")
    cache = own("XDG_CACHE_HOME", ".cache")
    folders = [base / name for name in FOLDERS] + ([data / "gpud" / "models"] if data else [])
    hubs = [base / "huggingface" / "hub"]
    hub_home = (
        own("HF_HOME", ".cache/huggingface") if user and environment.get("HF_HOME") else cache and cache / "huggingface"
    )
    hub = Path(environment["HF_HUB_CACHE"]) if user and environment.get("HF_HUB_CACHE", "").startswith("/") else None
    if hub or hub_home:
        hubs.append(hub or Path(hub_home or "") / "hub")
    said = wanted.engines["ollama"].models_dir if "ollama" in wanted.engines else ""
    stores = [Path(said)] if said else [base / "ollama" / "models"]
    mine = own("OLLAMA_MODELS", ".ollama/models")
    stores += [mine] if mine else []
    # Of other programs' places only those are watched that are there: theirs are made by them, not by a copy of a file.
    stores += [Path(OLLAMA_OF_THE_SYSTEM)] if Path(OLLAMA_OF_THE_SYSTEM).is_dir() else []
    return Roots(
        folders=_texts(folders) if registry.paths is None else registry.paths,
        include=registry.include,
        exclude=registry.exclude,
        huggingface=_texts(hubs) if registry.huggingface is None else registry.huggingface,
        ollama=_texts(stores) if registry.ollama is None else registry.ollama,
        files=tuple(
            dict.fromkeys(
                one.settings.file
                for model in wanted.models.values()
                for one in (model, *model.alternatives)
                if one.settings.file
            )
        ),
    )


def _texts(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(path) for path in paths))
