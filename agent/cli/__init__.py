"""What people type and see; each command is a thin layer over the packages below.

Nothing imports it. Whatever takes long to import is imported where it is used.
"""
