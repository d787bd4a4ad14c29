"""What an unload ended beside engines, as people read it."""

from collections.abc import Iterable


def no_longer_wanted(called_off: Iterable[str], stay_away: Iterable[str]) -> list[str]:
    """A sentence for each model that was not loaded and waited or had failed, and for each that was to come back."""
    return [
        *(f'"{name}" no longer waits and its failures are forgotten' for name in called_off),
        *(f'"{name}" does not come back by itself' for name in stay_away),
    ]
