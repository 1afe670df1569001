"""How good a text is, whether a rewrite may take its place, and whether a version may be promoted. Pure.

Imports `agent.contract` and `agent.constraints`, nothing that knows of files, jobs or workers.
"""
