"""Makes the benches importable, however pytest was started: they are no part of what is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
