"""The daemon: claims jobs, starts a process for each, and holds them back while the box is hot or busy.

It stays small: it must not import what runs a job, what decides, or what people see.
"""
