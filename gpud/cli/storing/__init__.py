"""The place where models are kept: its folders, what they hold, what of it can go. For ``gpudctl storage``."""
