"""The HTTP doors of gpud. The layer below them speaks HTTP/1.1 and knows nothing of models:

``limits`` holds its numbers; ``fields``, ``wire`` and ``bodies`` read and write what is on the wire; ``connection`` is
one end of a byte stream. ``server`` with ``listening``, ``serving`` and ``departures`` attends to clients, ``message``
is what a handler sees of them. ``client`` with ``upstream`` asks the engines, and ``relay`` passes an answer on.
"""
