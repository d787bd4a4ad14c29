"""gpud: one daemon that owns the GPU of a Linux machine."""

__version__ = "0.1.0"
