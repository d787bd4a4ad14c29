"""The HTTP doors of gpud. The layer below them speaks HTTP/1.1 and knows nothing of models:

``wire`` reads heads and bodies, ``limits`` holds its numbers, ``message`` is what a handler sees, ``server`` listens,
``client`` reaches the engines, ``relay`` passes an answer on.
"""
