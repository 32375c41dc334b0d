"""The newest jobs that fit some filters, each found by an index alone, over millions of finished ones.

Every branch below names its states as constants: the indexes leave running jobs out, and PostgreSQL uses such an index
only where it can see from the statement itself that no running job is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from agents.models import AgentVersion
from apikeys.models import Project
from jobs import usage
from jobs.models import Job

BY_ERROR = """
SELECT id FROM jobs_job AS job
 WHERE job.status = 'failed' AND job.error ->> 'code' = %(error)s {narrow}
 ORDER BY id DESC LIMIT %(reach)s
"""

# Few, and in an index of their own.
RUNNING = "SELECT id FROM jobs_job AS job WHERE job.status = 'running' {narrow}"

# BETWEEN, not "=": the order then begins with the state, which the primary key does not. Else the planner, which does
# not know the version, may walk back over all jobs to find those of an agent that has few.
IN_STATE = """
SELECT found.id
  FROM {source}
 CROSS JOIN LATERAL (
    SELECT job.id FROM jobs_job AS job
     WHERE {key} AND job.status BETWEEN '{status}' AND '{status}' AND job.status <> 'running' {narrow}
     ORDER BY job.status, job.id DESC LIMIT %(reach)s
 ) AS found
"""

# What is read is what ended within that time, however many ended before.
ENDED = """
SELECT id FROM jobs_job AS job
 WHERE TRUE {narrow}
 ORDER BY job.finished_at DESC LIMIT %(reach)s
"""

USED = """
SELECT id FROM jobs_job AS job
 WHERE id IN ({used}) {narrow}
 ORDER BY id DESC LIMIT %(reach)s
"""

# By project, because the index of states begins with it: a state of a project is then one range of it.
COUNT = """
SELECT '{status}', least(coalesce(sum(found), 0), %(most)s + 1)
  FROM apikeys_project AS project
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM (
        SELECT 1 FROM jobs_job AS job
         WHERE job.project_id = project.id AND job.status = '{status}'
         LIMIT %(most)s + 1) AS capped
 ) AS counted
"""

# An agent's versions, newest first: jobs of older ones than these are found by their ids.
MOST_VERSIONS = 200


@dataclass(frozen=True)
class Wanted:
    """Which jobs a list shows; what is empty does not narrow it."""

    status: str = ""
    project: str = ""  # slug
    agent: str = ""  # slug
    error_code: str = ""  # of jobs that failed
    ended_within: timedelta | None = None
    has_used_today: bool = False  # a model, since midnight (UTC)

    @property
    def is_plain(self) -> bool:
        """Whether the order of ids alone finds them: no filter, or a project's."""
        return not (self.status or self.agent or self.error_code or self.ended_within or self.has_used_today)

    @property
    def is_by_end(self) -> bool:
        """Whether the last ended come first. Of an agent or an error the newest do: it may be rare among what ended."""
        return self.ended_within is not None and not (self.agent or self.error_code or self.has_used_today)


def newest(wanted: Wanted, *, reach: int) -> list[UUID]:
    """The ids of up to `reach` jobs, newest first, or the last ended first (`is_by_end`)."""
    params: dict[str, Any] = {"reach": reach, "error": wanted.error_code}
    narrow = ""
    if wanted.project:
        params["project"] = Project.objects.filter(slug=wanted.project).values_list("id", flat=True).first()
        narrow = " AND job.project_id = %(project)s"
    if wanted.agent:
        versions = AgentVersion.objects.filter(agent__slug=wanted.agent).order_by("-id")
        params["versions"] = list(versions.values_list("id", flat=True)[:MOST_VERSIONS])
    if wanted.ended_within:
        params["seconds"] = wanted.ended_within.total_seconds()
        narrow += " AND job.finished_at > statement_timestamp() - make_interval(secs => %(seconds)s)"
    if wanted.has_used_today:
        sql = USED.format(used=usage.JOBS_OF_TODAY, narrow=narrow + _of_rows(wanted))
    elif wanted.is_by_end:
        sql = ENDED.format(narrow=narrow + _of_rows(wanted))
    else:
        sql = _by_index(wanted, narrow)
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [row[0] for row in cursor.fetchall()]


def ago(period: timedelta) -> datetime:
    """That long before the database's now."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment - period


def _by_index(wanted: Wanted, narrow: str) -> str:
    if wanted.error_code:
        return BY_ERROR.format(narrow=narrow + _of_agent(wanted))
    statuses = [wanted.status] if wanted.status else Job.Status.values
    branches = [_branch(wanted, status, narrow) for status in statuses]
    return f"{' UNION ALL '.join(branches)} ORDER BY id DESC LIMIT %(reach)s"


def _branch(wanted: Wanted, status: str, narrow: str) -> str:
    """The newest jobs in one state, over all projects or all versions of an agent."""
    if status == Job.Status.RUNNING:
        return RUNNING.format(narrow=narrow + _of_agent(wanted))
    if wanted.agent:
        source, key = "unnest(%(versions)s::uuid[]) AS version (id)", "job.agent_version_id = version.id"
    else:
        source, key = "apikeys_project AS project", "job.project_id = project.id"
    return IN_STATE.format(source=source, key=key, status=Job.Status(status).value, narrow=narrow)


def _of_rows(wanted: Wanted) -> str:
    """The other filters, as conditions on rows that are read anyway."""
    state = f" AND job.status = '{Job.Status(wanted.status).value}'" if wanted.status else ""
    error = " AND job.error ->> 'code' = %(error)s" if wanted.error_code else ""
    return state + error + _of_agent(wanted)


def _of_agent(wanted: Wanted) -> str:
    return " AND job.agent_version_id = ANY(%(versions)s::uuid[])" if wanted.agent else ""


def counts(statuses: Sequence[str], *, most: int) -> dict[str, int]:
    """How many jobs are in each of these states, counted up to `most` + 1."""
    branches = [COUNT.format(status=Job.Status(status).value) for status in statuses]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(branches), {"most": most})
        found = dict(cursor.fetchall())
    return {str(status): int(found[status]) for status in statuses}
