"""Where models are kept: the configured place, and of a user's own gpud the user's places, too."""

import os
from pathlib import Path

from gpud.cli.config import chosen_path
from gpud.cli.downloading.folders import of_user


def is_users(bus: str) -> bool:
    """Whether the wanted gpud is the user's own."""
    from gpud.config import default_path

    return chosen_path(bus) == default_path(True)


def users_own() -> list[Path]:
    """A folder for models, the cache of Hugging Face's libraries and Ollama's store, where these are."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache) / "hub"
    store = os.environ.get("OLLAMA_MODELS") or "~/.ollama/models"
    return [place for one in (of_user(), hub, store) if (place := Path(one).expanduser()).is_dir()]


def apart(places: list[Path]) -> list[Path]:
    """Without those that are another one, or lie in one that comes before."""
    found: list[Path] = []
    real: list[Path] = []
    for place in places:
        is_really = place.resolve()
        if not any(is_really == other or other in is_really.parents for other in real):
            found.append(place)
            real.append(is_really)
    return found
