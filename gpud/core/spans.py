"""How long something is, as people say it."""


def span(seconds: float) -> str:
    """``0.4 s``, ``45 s``, ``12 min``, ``2 h``, ``1 h 30 min``: what does not matter at that length is left out."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s")
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"
