"""Turns other programs' settings into a configuration of gpud, and says what became of each of them.

Text in, a :class:`~gpud.importing.report.Report` out: nothing here reads a file, asks a server or starts a program.
"""
