"""How many there are, as people say it."""


def plural(count: int, noun: str, nouns: str = "", *, grouped: bool = False) -> str:
    """``1 model``, ``0 models``, ``2 models``; where an s does not do, with ``nouns``: ``1 wish``, ``2 lines are``.
    ``grouped``: ``1,500 tensors``, of what there may be very many.
    """
    return f"{count:{',' if grouped else ''}} {noun if count == 1 else nouns or f'{noun}s'}"


NONE_THERE = 'there are no models: "gpudctl models list" says how to get one'
