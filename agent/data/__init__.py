"""Training files: read line by line, understood in any of the known formats, spooled.

Imports `agent.contract`, `agent.constraints` and `agent.scoring`; it knows nothing of jobs.
"""
