"""Jobs: their states and legal moves, and all SQL on jobs.db.

Imports `agent.contract` alone.
"""
