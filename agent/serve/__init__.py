"""Answers of the active version, for a command or over a socket.

It must not import the daemon, what runs a job, or what people see.
"""
