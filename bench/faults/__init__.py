"""The whole of gpud under load while everything around it breaks, and (``bench.soak``) while nothing does.

``apart`` keeps it from everybody else, ``system`` is what runs, ``clients`` are the load, ``account`` says of each
request what became of it, ``fault`` and the modules beside it are what goes wrong, ``campaign`` is the order of it all.
"""

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]

# What a system is made of are the parts that the tests have.
for _folder in (TOP / "tests", TOP / "tests" / "backends"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
