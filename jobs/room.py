"""Room for new jobs: what a key may have unfinished, and its project queued, in a month and in storage."""

from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from django.db.models.functions import Now

from apikeys.models import ApiKey, Project
from jobs.errors import MonthUsedUp, QueueFull, StorageFull, TooManyJobs
from jobs.models import Job
from jobs.queries import first_id

# Adding up all files of a project is not done more often; what comes in between is added to the sum.
SUM_HOLDS = timedelta(minutes=1)
# A job's id holds the time of the web process that made it; its clock may be off the database's by this much.
CLOCK_SLACK_SECONDS = 600
UNFINISHED = [status for status in Job.Status.values if status not in Job.FINAL]

# Jobs that continue others share their files.
STORED_BYTES = """
SELECT coalesce(sum(size), 0)::bigint FROM (
    SELECT DISTINCT ON (file.storage_key) file.size
      FROM jobs_inputfile AS file JOIN jobs_job AS job ON job.id = file.job_id
     WHERE job.project_id = %(project)s
     UNION ALL
    SELECT size FROM jobs_artifact WHERE project_id = %(project)s) AS stored
"""


def claim(project: Project, *, key: ApiKey | None = None, jobs: int = 1, new_bytes: int = 0) -> None:
    """Count so many new jobs, with input files of so many bytes, against the limits that there are.

    Holds the project's row, and the key's, to the end of the transaction, so that two submissions at once do not
    both take the last place. Raises TooManyJobs, QueueFull, MonthUsedUp or StorageFull.
    """
    limits = (project.max_queued, project.monthly_jobs, project.storage_bytes)
    is_key_limited = key is not None and key.max_concurrent_jobs is not None
    if not is_key_limited and all(limit is None for limit in limits):
        return
    with transaction.atomic():
        if key is not None and is_key_limited:
            _check_key(key, jobs)
        locked = Project.objects.select_for_update(no_key=True).annotate(now=Now()).get(id=project.id)
        _check_queue(locked, jobs)
        now: datetime = locked.now  # type: ignore[attr-defined]  # annotated
        _count_month(locked, jobs, now)
        _count_bytes(locked, new_bytes, now)
        locked.save(update_fields=["month", "month_jobs", "stored_bytes", "stored_at"])


def _check_key(key: ApiKey, jobs: int) -> None:
    most = ApiKey.objects.select_for_update(no_key=True).get(id=key.id).max_concurrent_jobs
    if most is None:
        return
    # Named by project and status, which are indexed.
    unfinished = Job.objects.filter(project=key.project_id, status__in=UNFINISHED, created_by_key=key.id)
    if unfinished[:most].count() + jobs > most:
        raise TooManyJobs(
            f"The key may have {most} jobs that have not ended. Try again when one has.",
            headers={"Retry-After": "5"},
            max_concurrent_jobs=most,
        )


def _check_queue(project: Project, jobs: int) -> None:
    most = project.max_queued
    if most is None:
        return
    unstarted = Job.objects.filter(project=project, status__in=(Job.Status.QUEUED, Job.Status.SCHEDULED))
    if unstarted[:most].count() + jobs > most:
        raise QueueFull(
            f"The project may have {most} jobs queued. Try again when some have started.",
            headers={"Retry-After": "5"},
            max_queued=most,
        )


def _count_month(project: Project, jobs: int, now: datetime) -> None:
    if project.monthly_jobs is None:
        return
    begin = _month(now)
    if project.month != begin.date():  # a new month, or a new limit
        since = Job.objects.filter(
            project=project,
            created_at__gte=begin,
            id__gte=first_id(int(begin.timestamp()) - CLOCK_SLACK_SECONDS),
        )
        project.month, project.month_jobs = begin.date(), since.exclude(status=Job.Status.REJECTED).count()
    if project.month_jobs + jobs > project.monthly_jobs:
        next_month = _month(begin + timedelta(days=31))
        raise MonthUsedUp(
            f"The project may submit {project.monthly_jobs} jobs a month and has submitted {project.month_jobs}.",
            headers={"Retry-After": str(int((next_month - now).total_seconds()) + 1)},
            monthly_jobs=project.monthly_jobs,
            submitted=project.month_jobs,
        )
    project.month_jobs += jobs


def _month(at: datetime) -> datetime:
    return datetime.combine(date(at.year, at.month, 1), datetime.min.time(), UTC)


def _count_bytes(project: Project, new_bytes: int, now: datetime) -> None:
    """Artifacts count from the next sum on: a job that runs may go over, and the next one is refused."""
    if project.storage_bytes is None:
        return
    if project.stored_at is None or project.stored_at < now - SUM_HOLDS:
        with connection.cursor() as cursor:
            cursor.execute(STORED_BYTES, {"project": project.id})
            project.stored_bytes, project.stored_at = cursor.fetchone()[0], now
    if project.stored_bytes + new_bytes > project.storage_bytes:
        raise StorageFull(
            f"The project may store {project.storage_bytes:,} bytes and has {project.stored_bytes:,} stored.",
            storage_bytes=project.storage_bytes,
            stored_bytes=project.stored_bytes,
        )
    project.stored_bytes += new_bytes
