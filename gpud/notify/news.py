"""What of all that gpud says needs a person, in words: values in, values out. Knows nothing of buses.

The frame of each sentence is in the person's language; what gpud itself says of the case stays as gpud says it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpud.core.record import Record
from gpud.tray.texts import Texts

LOG = "log"
RETRY = "retry"
STORAGE = "storage"

AGAIN_AND_AGAIN = 3
"""Failures in a row. One may be chance, and of two somebody has asked for the second."""


class News(Record):
    """``key`` names the event: the same one is shown once, and goes when it is over. ``model``: what it is about."""

    key: str
    title: str
    text: str
    actions: tuple[str, ...]
    model: str = ""
    critical: bool = False


class Words:
    """In one language."""

    def __init__(self, texts: Texts) -> None:
        self._ = texts.gettext

    def actions(self) -> dict[str, str]:
        """What stands on each button."""
        _ = self._
        return {LOG: _("Show log"), RETRY: _("Try again"), STORAGE: _("Show what takes the room")}

    def of_degraded(self, word: str, gpus: Sequence[Mapping[str, Any]]) -> News | None:
        """Of the property Degraded, with what ListGpus says; None where all is well."""
        _ = self._
        if not word:
            return None
        title, text = {
            "gpu-unavailable": (_("A GPU does not work"), self._health(gpus)),
            "state-not-kept": (
                _("gpud cannot keep its state"),
                _("What it measures and learns is lost when it ends, perhaps because a disk is full."),
            ),
            "driver-mismatch": (
                _("The driver of the GPU was updated"),
                _("It and its libraries are of different versions: restart the computer."),
            ),
        }.get(word, (_("gpud does not work as it should"), _("It says: {word}").format(word=word)))
        return News("degraded", title, f"{text}\n{_('gpudctl doctor says more.')}", (LOG,), critical=True)

    def _health(self, gpus: Sequence[Mapping[str, Any]]) -> str:
        broken = [f"{gpu.get('Name') or gpu.get('Uuid')}: {gpu['Health']}" for gpu in gpus if gpu.get("Health")]
        return "\n".join(broken) or self._("Its driver does not answer.")

    def of_models(self, models: Sequence[Mapping[str, Any]]) -> tuple[News, ...]:
        """Of the models: those that failed again and again and are not tried any more by themselves.

        Not those that could not be loaded once: whoever asked for one was told, and a widget says so itself.
        """
        return tuple(self._failing(model) for model in models if _has_given_up(model))

    def _failing(self, model: Mapping[str, Any]) -> News:
        name = model["Id"]
        title = self._("{model} fails again and again").format(model=model.get("DisplayName") or name)
        text = "\n".join(filter(None, (model.get("Error", ""), model.get("ErrorHint", ""))))
        return News(f"model {name}", title, text, (LOG, RETRY), name, critical=True)

    def of_retry(self, about: News, problem: str) -> News:
        """Of a model that was to be tried again, and could not even be asked for."""
        title = self._("{model} is not loaded").format(model=about.model)
        return News(about.key, title, problem, about.actions, about.model)

    def of_alert(self, body: Sequence[Any], holds: Sequence[Mapping[str, Any]]) -> tuple[str, News | None]:
        """Of the signal VramAlert: its key, and None where it is over or where gpud makes room by itself.

        What nobody holds is unloaded without anybody's doing; what somebody holds stays, and a person has to choose.
        """
        _ = self._
        gpu, name, raised, percent, limit, message = body
        key = f"full {gpu}"
        held = sorted({hold["Model"] or _("every model") for hold in holds if "evict" in hold["What"].split(":")})
        if not raised or not held:
            return key, None
        title = _("{gpu} is nearly full: {percent} % (alert at {limit} %)")
        stays = _(
            "What nobody holds is unloaded. What is held stays: {models}. Let go of it, or close another program."
        )
        text = f"{message}\n{stays.format(models=', '.join(held))}"
        return key, News(key, title.format(gpu=name, percent=percent, limit=limit), text, (LOG,))

    def of_disk(self, state: str) -> News | None:
        """Of the state of ml-storage-monitor.service."""
        _ = self._
        if state != "failed":
            return None
        title = _("The disk with the models is nearly full")
        text = _(
            "gpudctl storage du shows what takes the room, gpudctl storage clean-cache empties the cache, and "
            "gpudctl models rm deletes a model."
        )
        return News("disk", title, text, (STORAGE,))


def _has_given_up(model: Mapping[str, Any]) -> bool:
    return model["State"] == "failed" and model.get("Attempts", 0) >= AGAIN_AND_AGAIN and not model.get("RetryAtUSec")
