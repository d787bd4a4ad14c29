"""Downloads models, in a process of its own that belongs to whoever asked for them. The daemon never imports it."""
