"""The page behind an answer link: GET shows one question, POST answers it. The token in the path is the credential.

No cookie is read, so no other site can answer in anybody's name; and nothing happens on GET, which mail scanners send.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.template.loader import render_to_string
from django.utils.http import parse_header_parameters
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods
from rest_framework.exceptions import ValidationError

from apikeys.addresses import client_ip
from engine.anonymous import limited
from engine.errors import EngineError, ValidationFailed
from engine.gate import parse_json
from engine.problems import TooManyRequests, as_engine_error, problem
from jobs import services
from jobs.admin.answer_forms import AnswerForm
from jobs.errors import InvalidAnswer, LinkExpired, LinkNotFound, QuestionAlreadyAnswered, QuestionClosed
from jobs.models import Question
from jobs.notifying import links
from jobs.serializers import AnswerSerializer, QuestionSerializer

# A person reads and answers; whoever asks more often tries tokens out.
LOOKS, ANSWERS = "60/m", "20/m"

View = Callable[[HttpRequest, str], HttpResponse]


def private(view: View) -> View:
    """What every answer here carries: it is for this reader alone, and the address goes nowhere."""

    def answered(request: HttpRequest, token: str) -> HttpResponse:
        response = view(request, token)
        response["Cache-Control"] = "no-store"
        response["Referrer-Policy"] = "no-referrer"
        response["X-Robots-Tag"] = "noindex"
        return response

    return answered


@csrf_exempt  # the token is in the path, and nothing is taken from cookies
@never_cache
@private
@require_http_methods(["GET", "HEAD", "POST"])
def answer_page(request: HttpRequest, token: str) -> HttpResponse:
    """Show the question of a link, or take the answer to it."""
    try:
        _check_rate(request)
        question, link = _question(token)
        if request.method != "POST":
            _check_open(question)
            if _wants_json(request):
                return JsonResponse(QuestionSerializer(question).data)
            return _page(request, question, AnswerForm(question))
        if _content_type(request) == "application/json":
            return _take_json(request, question, link)
        return _take_form(request, question, link)
    except (EngineError, DatabaseError, InterfaceError, RequestDataTooBig, UnreadablePostError) as error:
        known = as_engine_error(error)
        if known is None:
            raise
        return _refusal(request, known)


def _check_rate(request: HttpRequest) -> None:
    """Raises TooManyRequests. Counted by address: tokens are too long to be guessed, but guessing costs us."""
    rate = ANSWERS if request.method == "POST" else LOOKS
    if limited(request, f"answer-link-{request.method == 'POST'}", rate):
        raise TooManyRequests("Wait a minute, then try again.", headers={"Retry-After": "60"})


def _question(token: str) -> tuple[Question, links.AnswerLink]:
    link = links.opened(token, now=services.database_time())
    question = Question.objects.select_related("job", "project").filter(id=link.question_id).first()
    if question is None or question.project.archived_at is not None:
        raise LinkNotFound
    return question, link


def _check_open(question: Question) -> None:
    """Raises QuestionAlreadyAnswered, QuestionClosed."""
    if question.status == Question.Status.ANSWERED:
        raise QuestionAlreadyAnswered(f"{question.answered_by} was first.", **services.answer_trace(question))
    if question.status != Question.Status.OPEN:
        raise QuestionClosed(f"The question is {question.status}; the job is {question.job.status}.")


def _take_json(request: HttpRequest, question: Question, link: links.AnswerLink) -> HttpResponse:
    """`{"answer": …}` from a program: the same checks, and the question as JSON."""
    body = AnswerSerializer(data=parse_json(request.body))
    try:
        body.is_valid(raise_exception=True)
    except ValidationError as error:
        raise as_engine_error(error) or ValidationFailed() from error
    answered = _respond(request, question, link, body.validated_data["answer"])
    return JsonResponse(QuestionSerializer(answered).data)


def _take_form(request: HttpRequest, question: Question, link: links.AnswerLink) -> HttpResponse:
    form = AnswerForm(question, request.POST)
    is_complete = form.is_complete(request)
    if question.status == Question.Status.OPEN and not is_complete:
        return _page(request, question, form, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    try:
        # Too late: the service says who was first.
        answered = _respond(request, question, link, form.answer(request) if is_complete else None)
    except InvalidAnswer as error:
        form.take_faults(error.detail, error.errors)
        return _page(request, question, form, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    return _render(request, "jobs/answer/done.html", {"question": answered})


def _respond(request: HttpRequest, question: Question, link: links.AnswerLink, answer: Any) -> Question:
    by = links.caller(link, project=question.project, ip=client_ip(request) or None)
    services.respond(question.job_id, by=by, answer=answer, question_id=question.id)
    return Question.objects.get(id=question.id)


def _page(
    request: HttpRequest, question: Question, form: AnswerForm, *, status: int = HTTPStatus.OK
) -> HttpResponse:
    context = {"question": question, "form": form, "action": request.path}
    return _render(request, "jobs/answer/question.html", context, status=status)


def _refusal(request: HttpRequest, error: EngineError) -> HttpResponse:
    """The same refusal for people and for programs. With its question closed, a link is over too."""
    if isinstance(error, QuestionClosed):
        error = LinkExpired(error.detail)
    if _content_type(request) == "application/json" or _wants_json(request):
        return problem(error, request)
    response = _render(request, "jobs/answer/refused.html", {"error": error}, status=error.status)
    for name, value in error.headers.items():
        response[name] = value
    return response


def _render(
    request: HttpRequest, template: str, context: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    return HttpResponse(render_to_string(template, context, request), status=status)


def _wants_json(request: HttpRequest) -> bool:
    return "application/json" in request.headers.get("Accept", "")


def _content_type(request: HttpRequest) -> str:
    return parse_header_parameters(request.headers.get("Content-Type", ""))[0]
