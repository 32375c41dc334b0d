"""Reads a database from outside and says which promises its history breaks, whatever wrote it.

Nothing of Engine is imported: the rules are those of docs/architecture.md, written a second time, as queries that find
offenders. `faults` gives one line per broken rule, with examples. Rules of `AT_REST` hold only while nothing runs.
"""

from collections.abc import Iterator
from typing import Any, Protocol

EXAMPLES = 5


class Cursor(Protocol):
    """Django's or psycopg's."""

    def execute(self, query: Any) -> Any: ...

    def fetchall(self) -> list[Any]: ...


FINAL = "('completed', 'failed', 'cancelled', 'rejected')"

# Events that tell a change of state, as the state that they lead to.
STATES = """
state AS (
    SELECT job_id, seq, attempt, data,
           CASE type WHEN 'job.retrying' THEN 'scheduled' WHEN 'job.started' THEN 'running'
                     WHEN 'job.waiting' THEN 'waiting_for_input' ELSE substr(type, 5) END AS name
      FROM jobs_event
     WHERE type IN ('job.queued', 'job.scheduled', 'job.retrying', 'job.started', 'job.waiting', 'job.completed',
                    'job.failed', 'job.cancelled', 'job.rejected')
)
"""

# The table of states, design section 4.
EDGES = """
edge (before, after) AS (VALUES
    ('', 'queued'), ('', 'scheduled'), ('', 'waiting_for_input'), ('', 'rejected'),
    ('scheduled', 'queued'), ('scheduled', 'failed'), ('scheduled', 'cancelled'),
    ('queued', 'running'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('running', 'completed'), ('running', 'failed'), ('running', 'waiting_for_input'), ('running', 'scheduled'),
    ('running', 'queued'), ('running', 'cancelled'),
    ('waiting_for_input', 'queued'), ('waiting_for_input', 'failed'), ('waiting_for_input', 'cancelled'))
"""

# Each query finds (job, what is wrong).
ALWAYS = {
    "events are numbered from 1 without gaps": """
        SELECT job_id, format('%s events up to %s, first %s', count(*), max(seq), min(seq)) FROM jobs_event
         GROUP BY job_id HAVING min(seq) <> 1 OR max(seq) <> count(*)
    """,
    "last_seq of a job that is not running is its last event's": """
        SELECT id, format('last_seq %s, last event %s', last_seq, seen)
          FROM jobs_job CROSS JOIN LATERAL (SELECT max(seq) FROM jobs_event WHERE job_id = id) AS event (seen)
         WHERE status <> 'running' AND last_seq IS DISTINCT FROM seen
    """,
    "no event belongs to no job": """
        SELECT job_id, min(type) FROM jobs_event WHERE job_id NOT IN (SELECT id FROM jobs_job) GROUP BY job_id
    """,
    "a replaced attempt never writes again": """
        SELECT job_id, format('event %s is of attempt %s after one of %s', seq, attempt, earlier)
          FROM (SELECT *, max(attempt) OVER (PARTITION BY job_id ORDER BY seq) AS earlier FROM jobs_event) AS event
         WHERE attempt < earlier
    """,
    "no event is of an attempt that never was": """
        SELECT job.id, format('event %s of attempt %s, job at %s', seq, event.attempt, job.attempt)
          FROM jobs_event AS event JOIN jobs_job AS job ON job.id = job_id WHERE event.attempt > job.attempt
    """,
    "a final job has exactly one final event, its own, and nothing after it": f"""
        WITH {STATES}
        SELECT id, format('%s: final events %s, last event %s', status, ends, last_type)
          FROM jobs_job CROSS JOIN LATERAL (
            SELECT array_agg(name) FROM state WHERE job_id = id AND name IN {FINAL}) AS final (ends)
         CROSS JOIN LATERAL (
            SELECT type FROM jobs_event WHERE job_id = id ORDER BY seq DESC LIMIT 1) AS last (last_type)
         WHERE CASE WHEN status IN {FINAL}
                    THEN ends IS DISTINCT FROM ARRAY[status::text] OR last_type <> 'job.' || status
                    ELSE ends IS NOT NULL END
    """,
    "states follow each other as the table of states says": f"""
        WITH {STATES}, {EDGES}, pair AS (
            SELECT job_id, seq, lag(name, 1, '') OVER (PARTITION BY job_id ORDER BY seq) AS before, name AS after
              FROM state)
        SELECT job_id, format('event %s: %s after %s', seq, after, before) FROM pair
         WHERE (before, after) NOT IN (SELECT before, after FROM edge)
    """,
    "the last event of a change of state tells the job's state": f"""
        WITH {STATES}
        SELECT id, format('%s, last told %s', status, name) FROM jobs_job CROSS JOIN LATERAL (
            SELECT name FROM state WHERE job_id = id ORDER BY seq DESC LIMIT 1) AS told
         WHERE status <> name
    """,
    "each attempt has started once, in order": """
        SELECT id, format('attempt %s, started %s', attempt, starts) FROM jobs_job CROSS JOIN LATERAL (
            SELECT array_agg(event.attempt ORDER BY seq) FROM jobs_event AS event
             WHERE job_id = id AND type = 'job.started') AS started (starts)
         WHERE coalesce(starts, '{}') <> ARRAY(SELECT generate_series(1, attempt))
    """,
    "each attempt that is over has one closed row, of the worker that started it": """
        SELECT job.id, format('attempt %s: %s of %s, started by %s', number, outcome, row.worker_id, data ->> 'worker')
          FROM jobs_job AS job JOIN jobs_event AS event ON job_id = job.id AND type = 'job.started'
          LEFT JOIN jobs_attempt AS row ON row.job_id = job.id AND row.number = event.attempt
         WHERE CASE WHEN job.status = 'running' AND event.attempt = job.attempt
                    THEN row.ended_at IS NOT NULL OR row.outcome <> 'running'
                    ELSE row.number IS NULL OR row.ended_at IS NULL OR row.outcome = 'running' END
            OR row.worker_id::text <> data ->> 'worker'
    """,
    "no attempt has a row without a start": """
        SELECT job.id, format('attempt %s, job at %s', number, attempt)
          FROM jobs_attempt JOIN jobs_job AS job ON job.id = job_id WHERE number NOT BETWEEN 1 AND attempt
    """,
    "a job completes with its last attempt, and no other attempt completes": """
        SELECT job.id, format('%s: attempt %s of %s %s', status, number, attempt, outcome)
          FROM jobs_job AS job JOIN jobs_attempt ON job_id = job.id
         WHERE (outcome = 'completed') <> (status = 'completed' AND number = attempt)
    """,
    "only a completed job has a result, only one that ended badly an error": f"""
        SELECT id, status FROM jobs_job
         WHERE (result IS NOT NULL AND status <> 'completed') OR (status = 'failed' AND error IS NULL)
            OR (error IS NOT NULL AND status NOT IN {FINAL}) OR (status = 'completed' AND error IS NOT NULL)
    """,
    "once cancelled, only completed can still win": """
        SELECT id, status FROM jobs_job
         WHERE cancel_requested_at IS NOT NULL AND status NOT IN ('running', 'cancelled', 'completed')
    """,
    "a running job is held by a worker that said so, no other job by any": """
        SELECT job.id, format('%s, worker %s', status, worker_id)
          FROM jobs_job AS job LEFT JOIN jobs_worker AS worker ON worker.id = worker_id
         WHERE CASE WHEN status = 'running' THEN worker.id IS NULL ELSE worker_id IS NOT NULL END
    """,
    "failures are counted against the budget, nothing else is": """
        SELECT id, format('%s: failed_count %s of %s, failed attempts %s', status, failed_count, max_attempts, failed)
          FROM jobs_job CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE outcome = 'failed') FROM jobs_attempt WHERE job_id = id) AS attempts (failed)
         WHERE status <> 'cancelled' AND (failed_count <> failed OR failed_count > max_attempts)
    """,
    "a job fails as lost only after three losses in a row": """
        SELECT job.id, format('lost_count %s, outcomes %s', lost_count, outcomes)
          FROM jobs_job AS job CROSS JOIN LATERAL (
            SELECT array_agg(outcome::text ORDER BY number) FROM jobs_attempt WHERE job_id = job.id) AS ran (outcomes)
         WHERE status = 'failed' AND status_reason = 'worker_lost'
           AND (SELECT count(*) FROM unnest(outcomes) AS outcome WHERE outcome = 'lost') < 3
    """,
    "a step with a durable end is told once, and never begins again": """
        SELECT job_id, format('%s: event %s after its end at %s', key, seq, ended)
          FROM (SELECT job_id, seq, type, data ->> 'key' AS key, min(seq) FILTER (WHERE type = 'step.completed')
                       OVER (PARTITION BY job_id, data ->> 'key') AS ended
                  FROM jobs_event WHERE type IN ('step.started', 'step.completed')) AS told
         WHERE seq > ended
    """,
    "steps and what is told of them agree": """
        SELECT coalesce(step.job_id, told.job_id),
               format('%s: ended %s, told %s', coalesce(step.key, told.key), ended_at, seq)
          FROM (SELECT * FROM jobs_step WHERE kind = 'step' AND attempt > 0) AS step
          FULL JOIN (SELECT job_id, seq, data ->> 'key' AS key FROM jobs_event WHERE type = 'step.completed') AS told
               ON told.job_id = step.job_id AND told.key = step.key
         WHERE (ended_at IS NOT NULL) <> (seq IS NOT NULL)
    """,
    "a step that has ended has its result": """
        SELECT job_id, key FROM jobs_step WHERE (ended_at IS NULL) <> (result IS NULL) OR ended_at < begun_at
    """,
    "a question is opened once and closed once": """
        SELECT job_id,
               format('%s %s: opened %s, answered %s, expired %s', key, question.status, opened, answered, expired)
          FROM jobs_question AS question CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE type = 'question.opened') AS opened,
                   count(*) FILTER (WHERE type = 'question.answered') AS answered,
                   count(*) FILTER (WHERE type = 'question.expired') AS expired
              FROM jobs_event AS event
             WHERE event.job_id = question.job_id AND data ->> 'question_id' = question.id::text) AS told
          JOIN jobs_job AS job ON job.id = job_id
         WHERE job.retried_from_id IS NULL
           AND (opened, answered, expired)
               <> (1, (question.status = 'answered')::int, (question.status = 'expired')::int)
    """,
    "the answer that is kept is the one that was told": """
        SELECT question.job_id, format('%s: %s, told %s', key, answer, data -> 'answer')
          FROM jobs_question AS question JOIN jobs_event AS event ON event.job_id = question.job_id
               AND type = 'question.answered' AND data ->> 'question_id' = question.id::text
         WHERE answer IS DISTINCT FROM data -> 'answer'
    """,
    "exactly the jobs that wait have open questions": """
        SELECT job.id, format('%s, %s open', status, open) FROM jobs_job AS job CROSS JOIN LATERAL (
            SELECT count(*) FROM jobs_question WHERE job_id = job.id AND status = 'open') AS questions (open)
         WHERE CASE WHEN status = 'waiting_for_input' THEN status_reason = 'question' AND open = 0 ELSE open > 0 END
    """,
    "statistics count each attempt that a worker ended": """
        SELECT outcome, format('counted %s, ended %s', counted, ended)
          FROM (SELECT outcome, sum(count) AS counted FROM jobs_minutestat GROUP BY outcome) AS stat
          FULL JOIN (SELECT outcome, count(*) AS ended FROM jobs_attempt WHERE ended_at IS NOT NULL GROUP BY outcome)
               AS attempts USING (outcome)
         WHERE CASE WHEN outcome = 'lost' THEN coalesce(counted, 0) > coalesce(ended, 0)
                    ELSE coalesce(counted, 0) <> coalesce(ended, 0) END
    """,
    "histograms hold as many attempts as were counted": """
        SELECT outcome, format('%s: %s waited, %s ran', count, wait_histogram, run_histogram) FROM jobs_minutestat
         WHERE (SELECT sum(n) FROM unnest(wait_histogram) AS n) <> count
            OR (SELECT sum(n) FROM unnest(run_histogram) AS n) <> count
    """,
    "artifacts and input files belong to jobs": """
        SELECT job_id, name FROM jobs_artifact WHERE job_id NOT IN (SELECT id FROM jobs_job)
        UNION ALL SELECT job_id, name FROM jobs_inputfile WHERE job_id NOT IN (SELECT id FROM jobs_job)
    """,
}

AT_REST = {
    "a running job has a live worker": """
        SELECT job.id, format('lease until %s', lease_until)
          FROM jobs_job AS job LEFT JOIN jobs_worker AS worker ON worker.id = worker_id
         WHERE status = 'running' AND (lease_until IS NULL OR lease_until <= statement_timestamp())
    """,
    "every job has come to its end": f"SELECT id, status FROM jobs_job WHERE status NOT IN {FINAL}",
}


def faults(cursor: Cursor, *, at_rest: bool = False) -> list[str]:
    """One line for each rule that is broken. `at_rest`: all that was begun should be over."""
    return list(_faults(cursor, ALWAYS | (AT_REST if at_rest else {})))


def _faults(cursor: Cursor, rules: dict[str, str]) -> Iterator[str]:
    for rule, query in rules.items():
        cursor.execute(query)
        rows = cursor.fetchall()
        if rows:
            examples = "; ".join(f"{job} {what}" for job, what in rows[:EXAMPLES])
            yield f"NOT TRUE: {rule} ({len(rows)}): {examples}"
