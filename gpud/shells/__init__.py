"""Who is at work on this machine: shells that have registered, and the processes that belong to them."""

from gpud.shells.watch import Shells

__all__ = ["Shells"]
