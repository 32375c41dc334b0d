"""Takes away one guard after another, in a copy of the tree, and sees whether a test notices.

    python -m drills.guards

Prints a table, and ends with 1 if a guard can go without a test failing, or if its lines are not there any more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from drills.guard import Guard
from drills.guards_api import API_GUARDS
from drills.guards_operations import OPERATIONS_GUARDS
from engine.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
TEST_SECONDS = 300
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".engine", "__pycache__", ".mypy_cache", ".ruff_cache")


QUEUE, INTERLEAVING = "tests/test_jobs_queue.py", "tests/test_jobs_interleaving.py"
TABLES = "jobs/migrations/0001_first_tables.py"

GUARDS = [
    Guard(
        "every write matches attempt, worker and state",
        "jobs/batch.py",
        "JOIN jobs_job AS job ON job.id = given.job_id AND job.attempt = given.attempt\n"
        " AND job.worker_id = %(worker_id)s AND job.status = 'running'",
        "JOIN jobs_job AS job ON job.id = given.job_id AND %(worker_id)s IS NOT NULL",
        f"{QUEUE}::test_a_zombie_cannot_write_over_its_successor",
    ),
    Guard(
        "a write first locks its worker's row",
        "jobs/queries.py",
        "lease_until > statement_timestamp() FOR KEY SHARE",
        "lease_until > statement_timestamp()",
        f"{INTERLEAVING}::test_a_write_and_a_sweep_of_its_worker_never_mix",
    ),
    Guard(
        "a write needs a lease that has not run out",
        "jobs/queries.py",
        "WHERE id = %s AND lease_until > statement_timestamp() FOR KEY SHARE",
        "WHERE id = %s FOR KEY SHARE",
        f"{QUEUE}::test_a_worker_without_its_lease_can_neither_claim_nor_write_nor_renew",
    ),
    Guard(
        "a lease that has run out is not renewed",
        "jobs/queries.py",
        "WHERE id = %s AND lease_until > statement_timestamp() AND stopped_at IS NULL",
        "WHERE id = %s AND stopped_at IS NULL",
        f"{QUEUE}::test_a_worker_without_its_lease_can_neither_claim_nor_write_nor_renew",
    ),
    Guard(
        "the sweep locks the worker's row before its jobs",
        "jobs/queries.py",
        '             LIMIT %s FOR UPDATE SKIP LOCKED\n            """,\n            [quiet, workers],',
        '             LIMIT %s\n            """,\n            [quiet, workers],',
        f"{INTERLEAVING}::test_a_write_and_a_sweep_of_its_worker_never_mix",
    ),
    Guard(
        "the sweep waits one lease after PostgreSQL's start",
        "jobs/queries.py",
        "OR pg_postmaster_start_time() + make_interval(secs => %s) < statement_timestamp())",
        "OR %s::float8 IS NOT NULL)",
        f"{QUEUE}::test_after_an_outage_of_the_database_nobody_is_charged_for_it",
    ),
    Guard(
        "claims lock the jobs that they take",
        "jobs/claiming.py",
        "         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS job\n    UNION ALL",
        "         ORDER BY sort_at, id LIMIT wanted.number) AS job\n    UNION ALL",
        f"{INTERLEAVING}::test_two_claims_never_take_one_job",
    ),
    Guard(
        "claims pass jobs that others hold (SKIP LOCKED)",
        "jobs/claiming.py",
        "         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS job\n    UNION ALL",
        "         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE) AS job\n    UNION ALL",
        f"{QUEUE}::test_a_claim_passes_a_job_that_another_session_holds_locked",
    ),
    Guard(
        "claims lock a project that has a limit",
        "jobs/claiming.py",
        "ORDER BY project.id FOR NO KEY UPDATE OF project",
        "ORDER BY project.id",
        f"{QUEUE}::test_max_running_holds_over_all_claimers",
    ),
    Guard(
        "an answer is given under the job's row lock",
        "jobs/services.py",
        "Job.objects.visible_to(by).select_for_update(no_key=True).filter(id=job_id)",
        "Job.objects.visible_to(by).filter(id=job_id)",
        f"{INTERLEAVING}::test_of_two_answers_the_first_wins_and_the_second_hears_so",
    ),
    Guard(
        "a result looks for a cancel under the job's row lock",
        "jobs/settlements.py",
        "         ORDER BY job.id FOR NO KEY UPDATE OF job",
        "         ORDER BY job.id",
        f"{INTERLEAVING}::test_no_job_goes_on_after_a_cancel_was_accepted",
    ),
    Guard(
        "the database refuses a change of a final job, and so a second result",
        TABLES,
        "WHEN (OLD.status IN ('completed', 'failed', 'cancelled', 'rejected'))",
        "WHEN (false)",
        f"{QUEUE}::test_the_database_refuses_any_change_of_a_final_job",
    ),
    Guard(
        "the database refuses a backward attempt or event number",
        TABLES,
        "WHEN (NEW.attempt < OLD.attempt OR NEW.last_seq < OLD.last_seq)",
        "WHEN (false)",
        f"{QUEUE}::test_the_database_refuses_a_backward_attempt_and_unknown_edges",
    ),
    Guard(
        "the database refuses a changed event",
        TABLES,
        "CREATE TRIGGER event_stays BEFORE UPDATE ON jobs_event FOR EACH ROW",
        "CREATE TRIGGER event_stays BEFORE UPDATE ON jobs_event FOR EACH ROW WHEN (false)",
        f"{QUEUE}::test_the_database_refuses_a_changed_event",
    ),
    Guard(
        "the database refuses another answer to a closed question",
        TABLES,
        "WHEN (OLD.status <> 'open')",
        "WHEN (false)",
        "tests/test_jobs_answers.py::test_a_closed_question_never_changes",
    ),
    Guard(
        "a step's durable end is never written over",
        "jobs/batch.py",
        " WHERE jobs_step.ended_at IS NULL\n",
        "",
        f"{QUEUE}::test_a_step_with_a_durable_end_is_never_written_over",
    ),
    Guard(
        "of two results of one attempt the first counts",
        "jobs/recorder.py",
        "        if self._settling is None:\n",
        "        if True:\n",
        "tests/test_jobs_recorder.py::test_of_two_settlements_on_their_way_the_first_counts",
    ),
    Guard(
        "a batch that is sent again meets its own rows",
        "jobs/batch.py",
        "ON CONFLICT (job_id, seq) DO NOTHING\n",
        "",
        f"{QUEUE}::test_a_batch_sent_again_changes_nothing",
    ),
    Guard(
        "sandboxes of a stopped worker are killed when its lease is over",
        "jobs/sandboxes/launcher.py",
        "return self.lease_until is not None and",
        "return False and",
        "tests/test_sandboxes_lifetime.py::test_a_stopped_worker_s_sandboxes_die_when_its_lease_is_over",
    ),
    Guard(
        "files stay when the fate of their job is unknown",
        "jobs/uploads.py",
        "    except (DatabaseError, InterfaceError):\n        keep()\n        raise\n    finally:\n"
        "        if not kept and uploads and not Job.objects.filter(id=job_id).exists():\n",
        "    finally:\n        if not kept and uploads:\n",
        "tests/test_jobs_api_submit.py::test_files_stay_when_the_job_was_committed_and_its_caller_never_heard",
    ),
    # --- people and webhooks ---
    Guard(
        "people: the connection goes to the address that was checked",
        "engine/outgoing.py",
        "            request.url = request.url.copy_with(host=address)\n",
        "",
        "tests/test_engine_outgoing.py::test_the_connection_goes_to_the_address_that_was_checked",
    ),
    Guard(
        "people: each address of a name is judged",
        "engine/outgoing.py",
        "    for address in addresses:\n        check(address, is_plain=is_plain)",
        "    for address in addresses[:1]:\n        check(address, is_plain=is_plain)",
        "tests/test_engine_outgoing.py::test_one_private_address_among_public_ones_refuses_the_name",
    ),
    Guard(
        "people: IPv4 addresses inside IPv6 ones are judged",
        "engine/outgoing.py",
        "        return [address.ipv4_mapped]",
        "        return [IPv4Address('1.1.1.1')]",
        "tests/test_engine_outgoing.py::test_no_call_goes_to_an_address_that_is_not_public",
    ),
    Guard(
        "people: redirects are not followed",
        "engine/outgoing.py",
        "follow_redirects=False",
        "follow_redirects=True",
        "tests/test_jobs_webhooks.py::test_redirects_are_a_failure_and_are_not_followed",
    ),
    Guard(
        "people: a late sender changes nothing (tries is its fence)",
        "jobs/notifying/outbox.py",
        "AND tries = %(tries)s AND state = 'pending'",
        "AND %(tries)s::int IS NOT NULL",
        "tests/test_jobs_webhooks.py::test_what_a_killed_sender_had_taken_is_sent_by_the_next",
    ),
    Guard(
        "people: one host takes a few calls at once",
        "jobs/notifying/outbox.py",
        "WHERE place <= %(to_one)s",
        "WHERE %(to_one)s IS NOT NULL",
        "tests/test_jobs_webhooks.py::test_a_receiver_that_hangs_holds_up_nobody_else",
    ),
    Guard(
        "people: a project sees its own webhooks",
        "jobs/notifying/models.py",
        '        """The only owner filter: a key sees its project\'s endpoints, staff sees all."""\n'
        "        return self if by.project is None else self.filter(project=by.project)",
        "        return self",
        "tests/test_jobs_api_webhooks.py::test_another_projects_webhooks_answer_as_missing_ones",
    ),
    Guard(
        "people: a project sees its own deliveries",
        "jobs/notifying/models.py",
        '        """The only owner filter: a key sees its project\'s deliveries, staff sees all."""\n'
        "        return self if by.project is None else self.filter(project=by.project)",
        "        return self",
        "tests/test_jobs_api_webhooks.py::test_another_projects_webhooks_answer_as_missing_ones",
    ),
    Guard(
        "people: a link ends with its time",
        "jobs/notifying/links.py",
        "    if link.expires_at <= now or (",
        "    if (",
        "tests/test_jobs_answer_links.py::test_a_link_ends_with_its_time_its_question_and_its_job",
    ),
    Guard(
        "people: a link ends with the key that made it",
        "jobs/notifying/links.py",
        " or (link.key_id and not _may_answer(link.key_id))",
        "",
        "tests/test_jobs_answer_links.py::test_a_link_ends_with_the_key_that_made_it",
    ),
    Guard(
        "people: answer links are throttled",
        "jobs/answering.py",
        "        _check_rate(request)\n",
        "",
        "tests/test_jobs_answer_links.py::test_whoever_tries_too_often_has_to_wait",
    ),
    Guard(
        "people: approving changes no arguments",
        "jobs/execution/questions.py",
        '                "else": {"properties": {"arguments": {"const": details["arguments"]}}},\n',
        "",
        "tests/test_execution_questions.py::test_each_kind_says_which_answers_fit_and_gives_them_back",
    ),
    Guard(
        "people: a reminder comes once",
        "jobs/services.py",
        '.filter(id=question_id, status="open", remind_at__lte=Now())',
        '.filter(id=question_id, status="open")',
        "tests/test_jobs_webhooks.py::test_reminders_that_fell_into_an_outage_come_as_one",
    ),
]

ALL_GUARDS = [*GUARDS, *API_GUARDS, *OPERATIONS_GUARDS]


def main(arguments: Sequence[str]) -> int:
    """Try all guards, or those whose name holds the first argument."""
    chosen = [guard for guard in ALL_GUARDS if not arguments or arguments[0] in guard.name]
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
        home = Path(folder) / "home"
        home.mkdir()
        server = EmbeddedServer(home)
        server.ensure()  # one for all
        try:
            print("| guard | file | without it | the test that fails | s |\n| --- | --- | --- | --- | --- |")
            noticed = [_try(guard, tree, home) for guard in chosen]
        finally:
            server.leave()
    return 0 if all(noticed) else 1


def _try(guard: Guard, tree: Path, home: Path) -> bool:
    path = tree / guard.file
    before = path.read_text()
    if guard.lines not in before:
        verdict, began = "NOT FOUND: its lines have changed", time.monotonic()
    else:
        path.write_text(before.replace(guard.lines, guard.without))
        began = time.monotonic()
        verdict = _verdict(guard.test, tree, home)
        path.write_text(before)
    test = guard.test.partition("::")
    print(
        f"| {guard.name} | `{guard.file}` | {verdict} | `{test[2] or test[0]}` | {time.monotonic() - began:.0f} |",
        flush=True,
    )
    return verdict == "red"


def _verdict(test: str, tree: Path, home: Path) -> str:
    # No byte code: two versions of a file within one second have the same time, and Python would take the old one.
    environment = os.environ | {"ENGINE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", test]
    try:
        ended = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "red"  # it waits for ever for what the guard would have let happen
    if ended.returncode not in (0, 1):
        return f"BROKEN: pytest ended with {ended.returncode}"
    return "red" if ended.returncode == 1 else "GREEN"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
