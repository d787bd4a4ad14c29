"""What of all that gpud says needs a person, in words: values in, values out. Knows nothing of buses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOG = "log"
RETRY = "retry"
STORAGE = "storage"

ACTIONS = {LOG: "Show log", RETRY: "Try again", STORAGE: "Show what takes the room"}

AGAIN_AND_AGAIN = 3
"""Failures in a row. One may be chance, and of two somebody has asked for the second."""


@dataclass(frozen=True, slots=True)
class News:
    """``key`` names the event: the same one is shown once, and goes when it is over. ``model``: what it is about."""

    key: str
    title: str
    text: str
    actions: tuple[str, ...]
    model: str = ""
    critical: bool = False


def of_degraded(text: str) -> News | None:
    """Of the property Degraded; None where all is well."""
    if not text:
        return None
    return News("degraded", "A GPU does not work", f"{text}\ngpudctl doctor says more.", (LOG,), critical=True)


def of_models(models: Sequence[Mapping[str, Any]]) -> tuple[News, ...]:
    """Of the models: those that failed again and again and are not tried any more by themselves.

    Not those that could not be loaded once: whoever asked for one was told, and a widget says so itself.
    """
    return tuple(
        News(
            f"model {model['Id']}",
            f"{model.get('DisplayName') or model['Id']} fails again and again",
            "\n".join(filter(None, (model.get("Error", ""), model.get("ErrorHint", "")))),
            (LOG, RETRY),
            model["Id"],
            critical=True,
        )
        for model in models
        if model["State"] == "failed" and model.get("Attempts", 0) >= AGAIN_AND_AGAIN and not model.get("RetryAtUSec")
    )


def of_alert(body: Sequence[Any], holds: Sequence[Mapping[str, Any]]) -> tuple[str, News | None]:
    """Of the signal VramAlert: its key, and None where it is over or where gpud makes room by itself.

    What nobody holds is unloaded without anybody's doing; what somebody holds stays, and a person has to choose.
    """
    gpu, name, raised, percent, limit, message = body
    key = f"full {gpu}"
    held = sorted({hold["Model"] or "every model" for hold in holds if "evict" in hold["What"].split(":")})
    if not raised or not held:
        return key, None
    stays = ", ".join(held)
    text = f"{message}\nWhat nobody holds is unloaded. {stays} is held and stays: let go of it, or close a program."
    return key, News(key, f"{name} is nearly full: {percent} % (alert at {limit} %)", text, (LOG,))


def of_disk(state: str) -> News | None:
    """Of the state of ml-storage-monitor.service."""
    if state != "failed":
        return None
    return News(
        "disk",
        "The disk with the models is nearly full",
        "gpudctl storage shows what takes the room and what can go; gpudctl storage check has the numbers.",
        (STORAGE,),
    )
