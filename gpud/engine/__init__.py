"""The engine: the one writer of all state (``writer``) and the work that it begins (``work``)."""

from gpud.engine.listeners import Listener
from gpud.engine.writer import Engine

__all__ = ["Engine", "Listener"]
