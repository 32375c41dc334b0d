"""Answers that a client may hold already: `ETag`, and 304 to an `If-None-Match` that has it (RFC 9110, 13.1.2)."""

import hashlib
from typing import Any

from django.http import HttpResponse, HttpResponseBase
from django.utils.cache import get_conditional_response
from drf_spectacular.utils import OpenApiParameter
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

IF_NONE_MATCH = OpenApiParameter("If-None-Match", str, OpenApiParameter.HEADER)


def json_answer(request: Request, document: Any) -> HttpResponseBase:
    """The document as a whole answer with its ETag, or 304 if the client has this very state."""
    body = JSONRenderer().render(document)
    response = HttpResponse(body, content_type="application/json")
    response["ETag"] = etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return get_conditional_response(request._request, etag=etag, response=response) or response
