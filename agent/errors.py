"""The exceptions that `agent.api` raises, under the name by which programs import them."""

from __future__ import annotations

from agent.contract.errors import *  # noqa: F403
