"""The dashboard's pages about agents. Importing this package registers them."""

from agents.admin.agents import AgentAdmin

__all__ = ["AgentAdmin"]
