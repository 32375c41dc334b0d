"""The conversation of a job over HTTP."""

from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import caller
from apikeys.scopes import Scope
from engine.openapi import whole
from engine.query import query_params, whole_number
from jobs import services
from jobs.transcripts import transcript

MOST_REPLIES = 200


class MessageSerializer(serializers.Serializer[Any]):
    """The shape of a message, for the API's description."""

    role = serializers.ChoiceField(choices=["system", "user", "assistant", "tool"])
    content = serializers.CharField(allow_null=True)
    key = serializers.CharField(required=False, help_text="Its entry in the job's journal.")
    at = serializers.DateTimeField(required=False)
    attempt = serializers.IntegerField(required=False)
    tool_calls = serializers.ListField(child=serializers.DictField(), required=False)
    usage = serializers.DictField(required=False)
    tool_call_id = serializers.CharField(required=False)
    name = serializers.CharField(required=False)
    state = serializers.ChoiceField(choices=["waiting", "begun", "ended"], required=False)
    figures = serializers.ListField(child=serializers.CharField(), required=False)
    job_id = serializers.UUIDField(required=False)


class TranscriptView(APIView):
    """/api/v1/jobs/:id/transcript."""

    required_scope = Scope.JOBS_READ

    @extend_schema(
        operation_id="jobs_transcript",
        parameters=[
            whole("after", 0, 1_000_000, "Messages beyond this reply of the model."),
            whole("limit", 1, MOST_REPLIES, "Replies a page."),
        ],
        responses=inline_serializer(
            "Transcript",
            {
                "items": MessageSerializer(many=True),
                "next_after": serializers.IntegerField(
                    allow_null=True, help_text="`after` of the next page; null: this is the end so far."
                ),
            },
        ),
    )
    def get(self, request: Request, job_id: UUID) -> Response:
        """The conversation of an llm agent's job: what the model was told, said and called. Empty for other agents."""
        params = query_params(
            request, {"after": whole_number(0, 1_000_000), "limit": whole_number(1, MOST_REPLIES)}
        )
        job = services.get(job_id, by=caller(request))
        items, after = transcript(job, after=params.get("after", 0), limit=params.get("limit", 100))
        return Response({"items": items, "next_after": after})
