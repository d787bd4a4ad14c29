"""How many there are, as people say it."""


def plural(count: int, noun: str, nouns: str = "") -> str:
    """``1 model``, ``0 models``, ``2 models``; where an s does not do, with ``nouns``: ``1 wish``, ``2 lines are``."""
    return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"
