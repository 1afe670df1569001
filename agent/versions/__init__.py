"""Published versions, and the base models that they rest on.

Imports `agent.contract`, `agent.system` and `agent.queue`; `fetch` runs as a process of its own and is the only module
of `agent` that reaches the network.
"""
