"""The engine: the one writer of all state (``writer``) and the work that it begins (``work``)."""

from gpud.engine.writer import Engine, Listener

__all__ = ["Engine", "Listener"]
