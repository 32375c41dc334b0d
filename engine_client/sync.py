"""The client for ordinary programs."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from engine_client import operations
from engine_client.core import WAIT_SECONDS, Call, EventFeed, FileLike, Pause, Steps, pages
from engine_client.credentials import connection
from engine_client.errors import JobNotWaiting, JobUnfinished, QuestionAlreadyAnswered, QuestionClosed
from engine_client.folders import place
from engine_client.models import Agent, Artifact, Discovery, Event, Job, Key, Question

T = TypeVar("T")
M = TypeVar("M")
TOO_LATE = (JobNotWaiting, QuestionAlreadyAnswered, QuestionClosed)  # somebody else was first


class Client:
    """Engine over HTTP. Without arguments: ENGINE_URL and ENGINE_API_KEY, or what `engine login` has stored.

    May be shared by threads. Raises `engine_client.errors`: Problem and its kinds for refusals, ConnectionFailed.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url, secret = connection(url, key)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, transport=transport)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def _do(self, steps: Steps[T]) -> T:
        try:
            wanted = next(steps)
            while True:
                if isinstance(wanted, Pause):
                    time.sleep(wanted.seconds)
                    wanted = steps.send(httpx.Response(204))
                    continue
                try:
                    response = self._send(wanted)
                except httpx.TransportError as error:
                    wanted = steps.throw(error)
                else:
                    wanted = steps.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, call: Call) -> httpx.Response:
        with ExitStack() as stack:
            return self._http.request(call.method, call.path, **call.keywords(stack))

    def _all(
        self, name: str, read: Callable[[Mapping[str, Any]], M], params: Mapping[str, Any]
    ) -> Iterator[M]:
        for page in pages(operations.LISTS[name], params):
            yield from map(read, self._do(page))

    # --- jobs ---

    def submit(self, task: str, *, files: Iterable[FileLike] = (), **members: Any) -> Job:
        """Post a job with files; `members` are the API's (agent, input, priority, tags, …) and `idempotency_key`."""
        return self._do(operations.submit(task, files=files, **members))

    def run(
        self,
        task: str,
        *,
        files: Iterable[FileLike] = (),
        on_question: Callable[[Question], Any] | None = None,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
        **members: Any,
    ) -> Job:
        """Submit a job and return it when it has ended, whichever way (`job.checked()` raises unless it completed).

        `on_question` gives the answer to a question; None leaves it to somebody else, as does leaving it out.
        Raises JobUnfinished after `timeout` seconds; the job goes on.
        """
        job = self.submit(task, files=files, **members)
        return self.follow(job.id, on_question=on_question, on_event=on_event, timeout=timeout)

    def follow(
        self,
        job_id: str,
        *,
        on_question: Callable[[Question], Any] | None = None,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
        after: int = 0,
    ) -> Job:
        """As `run`, for a job that is there already."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if deadline is not None and on_event is None and on_question is None:
            return self.wait(job_id, timeout=timeout, through_questions=True)
        asked: set[str] = set()
        for event in self.events(job_id, after=after, deadline=deadline):
            if on_event is not None:
                on_event(event)
            if on_question is not None and event.type == "job.waiting":
                self._ask(job_id, on_question, asked)
        return self.job(job_id)

    def _ask(self, job_id: str, on_question: Callable[[Question], Any], asked: set[str]) -> None:
        for question in self.job(job_id).open_questions:
            if question.id in asked:
                continue
            asked.add(question.id)
            answer = on_question(question)
            if answer is None:
                continue
            try:
                self.respond(job_id, answer, question_id=question.id)
            except TOO_LATE:
                continue

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return self._do(operations.job(job_id))

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Jobs, newest first: status, agent, tag, created_after, created_before, q; limit is that of a page."""
        return self._all("jobs", Job.of, filters)

    def wait(self, job_id: str, *, timeout: float | None = None, through_questions: bool = False) -> Job:
        """The job when it has ended, or asks a person. Raises JobUnfinished after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise JobUnfinished(f"Job {job_id} has not ended yet")
            job = self._do(operations.job(job_id, wait_seconds=operations.wait_for(left)))
            if job.is_final or (job.asks and not through_questions):
                return job
            if job.asks:  # the server answers at once while it asks
                time.sleep(min(1.0, left))

    def stored_events(self, job_id: str, *, after: int = 0, **filters: Any) -> Iterator[Event]:
        """Events beyond `after` that are stored now; filters as in `events`."""
        while page := self._do(operations.stored_events(job_id, after, filters)):
            yield from page
            after = page[-1].seq

    def events(
        self, job_id: str, *, after: int = 0, deadline: float | None = None, **filters: Any
    ) -> Iterator[Event]:
        """Events beyond `after`, those to come included, until the job has ended.

        Connects again by itself: each seq comes once and in order. Filters are type, level and source. Raises
        JobUnfinished once `time.monotonic()` is past `deadline`.
        """
        feed = EventFeed(job_id, after=after, **filters)
        while not feed.ended:
            try:
                yield from self._connection(feed, deadline)
                delay = 0.0 if feed.ended else feed.broken()
            except httpx.TransportError as error:
                _check_deadline(job_id, deadline)
                delay = feed.broken(error)
            if delay:
                time.sleep(delay)

    def _connection(self, feed: EventFeed, deadline: float | None) -> Iterator[Event]:
        call = feed.call()
        silence = (
            call.timeout if deadline is None else min(call.timeout, max(0.1, deadline - time.monotonic()))
        )
        params, headers = dict(call.params), dict(call.headers)
        with self._http.stream("GET", call.path, params=params, headers=headers, timeout=silence) as stream:
            if stream.status_code == httpx.codes.NO_CONTENT:
                feed.ended = True
            elif stream.is_success:
                for chunk in stream.iter_bytes():
                    _check_deadline(feed.path, deadline)
                    yield from feed.read(chunk)
            else:
                stream.read()
                time.sleep(feed.refused(stream))

    def respond(
        self,
        job_id: str,
        answer: Any = None,
        *,
        question_id: str | None = None,
        answers: Mapping[str, Any] | None = None,
    ) -> Job:
        """Answer the one open question, the one named, or several (`answers`: question id → answer)."""
        return self._do(operations.respond(job_id, operations.answer_members(answer, question_id, answers)))

    def cancel(self, job_id: str) -> Job:
        """Stop a job; one that has ended stays as it is."""
        return self._do(operations.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """A new job that continues a failed or cancelled one."""
        return self._do(operations.retry(job_id))

    def questions(self, **filters: Any) -> Iterator[Question]:
        """The inbox: open questions over all jobs, or those with `status`, of one `job`."""
        return self._all("questions", Question.of, filters)

    def artifacts(self, job_id: str) -> Iterator[Artifact]:
        """All files of a job, newest first."""
        for page in pages(f"{operations.API}/jobs/{job_id}/artifacts", {}):
            yield from map(Artifact.of, self._do(page))

    def read(self, artifact: Artifact) -> bytes:
        """A file's bytes."""
        return self._do(operations.download(artifact))

    def download(self, job_id: str, folder: Path | str) -> list[Path]:
        """Store all files of a job below a folder, which is made; returns their paths."""
        return [place(folder, one, self.read(one)) for one in self.artifacts(job_id)]

    # --- agents and keys ---

    def discover(self, task: str, *, limit: int | None = None, **filters: Any) -> Discovery:
        """Who can do a task, best first, and why."""
        return self._do(operations.discover(task, limit=limit, filters=filters))

    def agents(self, **filters: Any) -> Iterator[Agent]:
        """Agents, newest first: status, kind, tag, q."""
        return self._all("agents", Agent.of, filters)

    def agent(self, slug: str) -> Agent:
        """One agent, with its source."""
        return self._do(operations.agent(slug))

    def register(self, card: Mapping[str, Any]) -> Agent:
        """Register an agent, or a new version of one."""
        return self._do(operations.register(card))

    def keys(self) -> Iterator[Key]:
        """The project's keys, newest first."""
        return self._all("keys", Key.of, {})

    def create_key(self, name: str, scopes: Sequence[str], **members: Any) -> Key:
        """Make a key. Its secret is in this answer alone."""
        return self._do(operations.create_key(name, scopes, members))

    def revoke_key(self, key_id: str) -> Key:
        """Refuse a key for good."""
        return self._do(operations.revoke_key(key_id))


def _check_deadline(job: str, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise JobUnfinished(f"Job {job} has not ended yet")
