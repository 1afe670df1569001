"""The command line: each command is a thin layer over the packages below.

Nothing imports it. Whatever takes long to import is imported where it is used.
"""
