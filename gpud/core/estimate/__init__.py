"""What a model will need before it has ever run: from the header of its file, or failing that from its size.

Pure arithmetic. :func:`estimate` is exact where llama.cpp has rules, and says so where it knows none; the engine's own
dry run and what was measured always win over it.
"""

from gpud.core.estimate.guess import first_guess
from gpud.core.estimate.shape import Shape, ShapeInvalid, UnknownArchitecture
from gpud.core.estimate.total import estimate

__all__ = [
    "Shape",
    "ShapeInvalid",
    "UnknownArchitecture",
    "estimate",
    "first_guess",
]
