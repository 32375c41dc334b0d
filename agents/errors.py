"""What can go wrong with agents, in words a client can act on."""

from http import HTTPStatus

from engine.errors import Conflict, NotFound, ValidationFailed


class AgentNotFound(NotFound):
    """No agent, or no version of it, of that name that this caller may see."""

    code, title = "agent_not_found", "There is no such agent"


class InvalidCard(ValidationFailed):
    """The agent card cannot be registered; `errors` points at each fault."""

    code, title = "invalid_card", "The agent card is not valid"


class AgentArchived(Conflict):
    """The agent is archived: it takes neither work nor new versions until it is restored."""

    code, title = "agent_archived", "The agent is archived"


class AgentIsShared(Conflict):
    """A project's key may not change an agent that all projects share."""

    status, code, title = HTTPStatus.FORBIDDEN, "agent_is_shared", "The agent is shared by all projects"


class SpaceIncomplete(Conflict):
    """An embedding space cannot be activated while vectors are missing in it."""

    status, code, title = HTTPStatus.CONFLICT, "space_incomplete", "The embedding space is not complete"
