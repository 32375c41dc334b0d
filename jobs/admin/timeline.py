"""A job's life as bars over time: what state it was in, each attempt, each step, each question."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobs.models import Attempt, Job, Question, Step

MOST_ROWS = 120
TICKS = 4
# A bar that is shorter is still to be seen.
LEAST_WIDTH = 0.4


@dataclass(frozen=True)
class Bar:
    """One stretch of time, in percent of the whole."""

    left: float
    width: float
    look: str  # a state or an outcome, as chips name them
    says: str


@dataclass(frozen=True)
class Row:
    """One line of the chart."""

    kind: str  # job | attempt | step | question
    label: str
    bars: Sequence[Bar]
    took: timedelta
    is_open: bool = False


@dataclass(frozen=True)
class Timeline:
    """All of it; `ticks` are the times from the start at equal distances."""

    rows: Sequence[Row]
    ticks: Sequence[timedelta] = field(default_factory=list)
    is_cut: bool = False


def timeline(
    job: Job,
    attempts: Iterable[Attempt],
    steps: Iterable[Step],
    questions: Iterable[Question],
    now: datetime,
) -> Timeline:
    """From the job's birth to its end, or to `now`. Attempts, steps and questions in any order."""
    tries = sorted(attempts, key=lambda attempt: attempt.number)
    asked = sorted(questions, key=lambda question: question.id)
    scale = Scale(job.created_at, job.finished_at or now)
    rows = [Row("job", "Job", list(_states(job, tries, asked, scale)), scale.length, not job.is_final)]
    for attempt in tries:
        end = attempt.ended_at or scale.end
        bar = scale.bar(attempt.started_at, end, attempt.outcome, attempt.outcome.replace("_", " "))
        label = f"Attempt {attempt.number}"
        rows.append(Row("attempt", label, [bar], end - attempt.started_at, attempt.ended_at is None))
    parts: list[tuple[datetime, Row]] = []
    for step in (step for step in steps if step.kind != "ask"):  # the question itself has a row
        end = step.ended_at or (scale.end if job.status == Job.Status.RUNNING else step.begun_at)
        look = "completed" if step.ended_at else "running"
        says = f"{step.kind} in attempt {step.attempt}"
        row = Row("step", step.key, [scale.bar(step.begun_at, end, look, says)], end - step.begun_at)
        parts.append((step.begun_at, row))
    for question in asked:
        end = question.answered_at or scale.end
        says = f"{question.status} {question.answered_by}".strip()
        bar = scale.bar(question.created_at, end, question.status, says)
        is_open = question.status == Question.Status.OPEN
        parts.append(
            (question.created_at, Row("question", question.prompt, [bar], end - question.created_at, is_open))
        )
    rows += [row for _, row in sorted(parts, key=lambda part: part[0])]
    ticks = [scale.length * part / TICKS for part in range(TICKS + 1)]
    return Timeline(rows[:MOST_ROWS], ticks, len(rows) > MOST_ROWS)


class Scale:
    """Moments to percent."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, max(end, start + timedelta(milliseconds=1))
        self.length = self.end - self.start

    def bar(self, start: datetime, end: datetime, look: str, says: str) -> Bar:
        """The bar of one stretch, cut to the whole."""
        left = self._place(start)
        width = max(LEAST_WIDTH, self._place(end) - left)
        return Bar(round(min(left, 100 - LEAST_WIDTH), 3), round(min(width, 100 - left), 3), look, says)

    def _place(self, moment: datetime) -> float:
        share: float = (moment - self.start) / self.length
        return min(1.0, max(0.0, share)) * 100


def _states(job: Job, attempts: Sequence[Attempt], asked: Sequence[Question], scale: Scale) -> Iterator[Bar]:
    """What the job was between its attempts: in the queue, waiting for an answer, or waiting for its next try."""
    last, waits_for = job.created_at, "queued"
    for attempt in attempts:
        yield from _gap(last, attempt.started_at, waits_for, asked, scale)
        last = attempt.ended_at or scale.end
        yield scale.bar(attempt.started_at, last, "running", f"running, attempt {attempt.number}")
        outcome = attempt.outcome
        waits_for = {"suspended": "waiting_for_input", "failed": "scheduled"}.get(outcome, "queued")
    if last < scale.end:
        yield from _gap(last, scale.end, waits_for if attempts else job.status, asked, scale)


def _gap(
    start: datetime, end: datetime, state: str, asked: Sequence[Question], scale: Scale
) -> Iterator[Bar]:
    if state in Job.FINAL:
        state = "queued"
    answered = [q.answered_at for q in asked if q.answered_at and start <= q.answered_at <= end]
    is_open = any(question.status == Question.Status.OPEN for question in asked)
    if state == "waiting_for_input" and answered and not is_open:
        yield scale.bar(start, max(answered), state, "waiting for an answer")
        start, state = max(answered), "queued"
    yield scale.bar(start, end, state, state.replace("_", " "))
