"""What counts as an answer to each kind of question."""

from typing import Any

from jobs.errors import InvalidAnswer
from jobs.models import Question
from jobs.schemas import faults

_YES = {"yes", "y", "true", "ok", "confirm"}
_NO = {"no", "n", "false"}


def checked(question: Question, value: Any, *, at: str = "/answer") -> Any:
    """The answer in its stored form. Raises InvalidAnswer, pointers below `at`, when it does not fit the question."""
    answer = _plain(question, value)
    wrong = faults(answer, question.schema, at=at)
    if wrong:
        raise InvalidAnswer(_hint(question), errors=wrong)
    return answer


def _plain(question: Question, value: Any) -> Any:
    """Accept the short forms people type: yes/no for a confirm, a bare word for an approval."""
    if question.kind == Question.Kind.CONFIRM and isinstance(value, str):
        word = value.strip().lower()
        return True if word in _YES else False if word in _NO else value
    if question.kind == Question.Kind.APPROVAL and isinstance(value, str):
        return {"decision": value.strip().lower()}
    return value


def _hint(question: Question) -> str:
    match question.kind:
        case Question.Kind.CHOICE:
            return f"Answer with one of: {', '.join(map(str, question.choices or []))}."
        case Question.Kind.MULTI_CHOICE:
            return f"Answer with a list out of: {', '.join(map(str, question.choices or []))}."
        case Question.Kind.CONFIRM:
            return "Answer with true or false."
        case Question.Kind.APPROVAL:
            allowed = ", ".join(question.details.get("allowed", []))
            return f'Answer with {{"decision": …}}, one of: {allowed}.'
        case _:
            return "The answer does not fit the question's schema."
