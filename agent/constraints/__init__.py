"""Verifiable constraints: what is wrong with a text, in one short line. Pure.

Imports `agent.contract` alone.
"""
