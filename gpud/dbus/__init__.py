"""The D-Bus edge: gpud's object on the bus, who may call it, and what it tells. Knows the engine only as a protocol."""
