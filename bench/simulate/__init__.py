"""Drives gpud's own scheduler, and the rules of others, with a trace of requests on a simulated GPU."""
