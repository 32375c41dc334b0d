"""What REST framework's own create costs on this server: no queue, no agent, no key."""

from typing import Any

from rest_framework import generics, serializers

from benchmarks.plain.models import Row


class RowSerializer(serializers.ModelSerializer[Row]):
    """All of the row."""

    class Meta:
        model = Row
        fields = ("id", "task", "data", "created_at")


class RowsView(generics.CreateAPIView[Row]):
    """POST makes one row."""

    serializer_class: Any = RowSerializer
    queryset = Row._default_manager.all()
    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()
