"""``python -m gpud.tray``."""

from gpud.tray import main

raise SystemExit(main())
