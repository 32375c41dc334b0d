"""Engine's client for Python: jobs, their events and questions, agents and keys. See docs/clients.md."""

from engine_client.asynchronous import AsyncClient
from engine_client.errors import ConnectionFailed, EngineError, JobUnfinished, Problem
from engine_client.models import Agent, Artifact, Discovery, Event, Job, JobFailed, Key, Question
from engine_client.sync import Client

__all__ = [
    "Agent",
    "Artifact",
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "Discovery",
    "EngineError",
    "Event",
    "Job",
    "JobFailed",
    "JobUnfinished",
    "Key",
    "Problem",
    "Question",
]
