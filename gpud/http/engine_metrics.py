"""What running engines tell Prometheus of themselves, under the names that they give it, with a label for the model.

Only texts go in: who fetches them, and how often an engine may be asked, is the door's business. Loads the library.
"""

import logging
from collections.abc import Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

log = logging.getLogger(__name__)

TEXT_LIMIT = 256 << 10
"""More than this an engine does not say of itself: llama-server says two kilobytes, vLLM a hundred."""

RESERVED = ("gpud_", "process_")
"""Names of gpud's own; an engine's under these would be taken for gpud's."""


def families_of_engines(texts: Mapping[str, str]) -> list[Metric]:
    """Each name once, however many engines have it. A text that is none is left out: the others still count."""
    found: dict[str, Metric] = {}
    for model, text in texts.items():
        if len(text) > TEXT_LIMIT:
            log.debug("The metrics of %s are left out: %d characters, the limit is %d", model, len(text), TEXT_LIMIT)
            continue
        try:
            families = list(text_string_to_metric_families(text))
        except ValueError as problem:
            log.debug("The metrics of %s are left out: they cannot be read: %s", model, problem)
            continue
        for family in families:
            if not family.name.startswith(RESERVED):
                _take(found, family, model)
    return list(found.values())


def _take(found: dict[str, Metric], family: Metric, model: str) -> None:
    together = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    if together.type != family.type:
        return
    for sample in family.samples:
        together.add_sample(sample.name, {**sample.labels, "model": model}, sample.value)
