"""The room of child processes: starts them, reads them, ends them with all that they forked, finds them again."""
