"""Questions over HTTP: the inbox, answers, and links with which somebody without an account answers."""

from http import HTTPStatus
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import Caller, caller
from apikeys.scopes import Scope
from engine.openapi import PAGE_QUERY, page_of, several
from engine.pages import PAGE_PARAMS, paginate
from engine.query import Several, identifier, one_of, query_params
from jobs import services
from jobs.errors import QuestionNotFound
from jobs.models import Job, Question
from jobs.notifying import links
from jobs.serializers import (
    AnswerSerializer,
    InboxQuestionSerializer,
    JobSerializer,
    LinkSerializer,
    RespondSerializer,
)
from jobs.views import WAIT, query


class RespondView(APIView):
    """/api/v1/jobs/ID/respond."""

    required_scope = Scope.JOBS_RESPOND

    @extend_schema(
        operation_id="jobs_respond", parameters=[WAIT], request=RespondSerializer, responses=JobSerializer
    )
    def post(self, request: Request, job_id: UUID) -> Response:
        """Answer what a job asks. The answer to its last open question lets it go on."""
        body = RespondSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        by = caller(request)
        given = body.validated_data
        services.respond(
            job_id,
            by=by,
            answer=given.get("answer"),
            question_id=given.get("question_id"),
            by_question=given.get("answers"),
        )
        return Response(JobSerializer(services.get(job_id, by=by)).data)


def inbox(by: Caller) -> QuerySet[Question]:
    """The questions that a caller may see, each with what matters of its job."""
    jobs = Job.objects.only("id", "status", "task", "priority")
    return Question.objects.visible_to(by).prefetch_related(Prefetch("job", jobs))


class QuestionsView(APIView):
    """/api/v1/questions."""

    required_scope = Scope.JOBS_READ

    @extend_schema(
        operation_id="questions_list",
        parameters=[
            *PAGE_QUERY,
            several("status", {"enum": Question.Status.values}, "Open ones if left out."),
            query("job", "A job's id.", UUID),
        ],
        responses=page_of(InboxQuestionSerializer),
    )
    def get(self, request: Request) -> Response:
        """The inbox over all jobs, newest first."""
        params = query_params(
            request, {**PAGE_PARAMS, "status": Several(one_of(*Question.Status.values)), "job": identifier}
        )
        questions = inbox(caller(request)).filter(status__in=params.get("status", [Question.Status.OPEN]))
        if "job" in params:
            questions = questions.filter(job_id=params["job"])
        page = paginate(questions, params)
        return Response(page.as_json(lambda items: InboxQuestionSerializer(items, many=True).data))


class AnswerView(APIView):
    """/api/v1/questions/ID/answer."""

    required_scope = Scope.JOBS_RESPOND

    @extend_schema(
        operation_id="questions_answer", request=AnswerSerializer, responses=InboxQuestionSerializer
    )
    def post(self, request: Request, question_id: UUID) -> Response:
        """Answer one question; the first valid answer wins."""
        body = AnswerSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        by = caller(request)
        question = Question.objects.visible_to(by).filter(id=question_id).first()
        if question is None:
            raise QuestionNotFound(question_id=str(question_id))
        services.respond(
            question.job_id, by=by, answer=body.validated_data["answer"], question_id=question_id
        )
        return Response(InboxQuestionSerializer(inbox(by).get(id=question_id)).data)


class LinkView(APIView):
    """/api/v1/questions/ID/link."""

    required_scope = Scope.JOBS_RESPOND

    @extend_schema(
        operation_id="questions_link",
        request=LinkSerializer,
        responses={
            201: inline_serializer(
                "AnswerLink", {"url": serializers.CharField(), "expires_at": serializers.DateTimeField()}
            )
        },
    )
    def post(self, request: Request, question_id: UUID) -> Response:
        """Make a link with which somebody without an account answers this one open question.

        The answer is signed with `holder`, or with the key's name. The link ends with its time, with the question, and
        with the key that made it.
        """
        body = LinkSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        link = services.answer_link(question_id, by=caller(request), **body.validated_data)
        document = {"url": links.url(link), "expires_at": link.expires_at}
        return Response(document, status=HTTPStatus.CREATED, headers={"Cache-Control": "no-store"})
