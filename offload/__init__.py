"""Rewrites text through a remote LLM: the only folder that imports httpx or textgrad."""
