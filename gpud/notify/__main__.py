"""``python -m gpud.notify``."""

from gpud.notify import main

raise SystemExit(main())
