"""The rules of gpud as values: no I/O, no clock, no asyncio. Time comes in as an argument."""
