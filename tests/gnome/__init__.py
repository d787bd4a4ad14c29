"""The GNOME Shell extension without the shell: what it works out, what it says on the bus, its words."""
