"""This box: its state folder, configuration, sensors and clocks, systemd, and the processes that are started on it.

Imports `agent.contract` alone.
"""
