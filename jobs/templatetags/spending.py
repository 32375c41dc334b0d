"""What keys and agents have used, for pages of apps that do not know of jobs."""

from typing import Any
from uuid import UUID

from django import template

from jobs import usage

register = template.Library()


@register.simple_tag
def key_spent(key_id: UUID) -> dict[str, Any]:
    """What a key's jobs have used of models in this calendar month (UTC)."""
    used = usage.of_key(key_id)
    return {
        "tokens": used.input_tokens + used.output_tokens,
        "cost_usd": used.cost_usd,
        "unpriced": used.unpriced_tokens,
    }


@register.simple_tag
def agent_spent(agent_id: UUID) -> dict[str, Any]:
    """What an agent's jobs have used in the last 30 days, by version, the newest first."""
    rows = usage.of_agent(agent_id)
    return {
        "versions": rows,
        "cost_usd": sum(row.used.cost_usd for row in rows),
        "jobs": sum(row.jobs for row in rows),
    }
