"""Rewards of a text, acceptance of a rewrite, promotion of a version. Pure.

Imports `agent.contract` and `agent.constraints`, nothing that knows of files, jobs or workers.
"""
