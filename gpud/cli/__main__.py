"""``python -m gpud.cli``: the same as ``gpudctl``."""

import sys

from gpud.cli import main

if __name__ == "__main__":
    sys.exit(main())
