"""Real desktops, headless, with a real gpud: run by ``make test-desktop``."""
