"""What tests of the dashboard share: people who sign in, and jobs in each state."""

import json
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.test import Client

from agents.models import Agent, AgentVersion
from apikeys.models import Project
from jobs.models import Artifact, Job, Question
from tests.jobs import ask, claim_one, log_line, make_job, make_worker, question, settlement, write


def make_person(name: str = "ada", *permissions: str, password: str | None = None) -> User:
    """A superuser, or with `permissions` ("jobs.view_job") a member of staff who has these alone."""
    if not permissions:
        return User.objects.create_superuser(name, password=password)
    person = User.objects.create_user(name, password=password, is_staff=True)
    for permission in permissions:
        app, _, codename = permission.partition(".")
        person.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return person


def signed_in(person: User) -> Client:
    """A browser in which this person has signed in."""
    client = Client()
    client.force_login(person)
    return client


def make_agent(text: str) -> Agent:
    """A shared agent of one version whose card says this everywhere."""
    agent = Agent.objects.create(slug="from-elsewhere")
    agent.current_version = AgentVersion.objects.create(
        agent=agent,
        number=1,
        name=text[:100],
        description=text,
        summary=text,
        kind="python",
        skills=[{"id": "a", "name": text, "description": text}],
        examples=[text],
        source={text: text},
        limits={text: text},
        requirements=[text],
        input_schema={"title": text},
        content_hash="0" * 64,
    )
    agent.save()
    return agent


def completed(project: Project | None = None, *messages: str, result: Any = None) -> Job:
    """A job that a worker has taken, logged for and completed."""
    job, worker = make_job(project), make_worker()
    claimed = claim_one(worker)
    lines = [log_line(claimed, offset, message) for offset, message in enumerate(messages, 1)]
    end = settlement(claimed, offset=len(lines) + 1, result=json.dumps(result))
    write(worker, events=lines, settlements=[end])
    job.refresh_from_db()
    return job


def asking(project: Project | None = None, *specs: dict[str, Any]) -> Job:
    """A job that waits for answers to these questions, or to one in free text."""
    job, worker = make_job(project), make_worker()
    questions = [question(f"ask#{number}", **spec) for number, spec in enumerate(specs or [{}], 1)]
    ask(worker, claim_one(worker), *questions)
    job.refresh_from_db()
    return job


def sole_question(job: Job) -> Question:
    return job.questions.get(status=Question.Status.OPEN)


def make_artifact(job: Job, name: str, content: bytes, media_type: str) -> Artifact:
    key = storages["artifacts"].save(f"{job.project_id}/{job.id}/file", ContentFile(content))
    return Artifact.objects.create(
        job=job,
        project_id=job.project_id,
        attempt=1,
        name=name,
        media_type=media_type,
        size=len(content),
        sha256="0" * 64,
        storage_key=key,
    )
