"""What ``gpudctl pull`` and ``gpudctl fetch`` share: a process that downloads, how it is shown here, and to others."""
