"""Make a key from the command line, and its project if that is new."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apikeys import services
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from apikeys.serializers import NewKey, NewProject
from engine.errors import EngineError
from engine.problems import field_errors


class Command(BaseCommand):
    help = (
        "Make an API key and print its secret, alone, on standard output: it is shown this once. "
        "Without --scope the key holds `admin`, every right: whoever can run this command runs the installation."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="what the key is for")
        parser.add_argument("--project", default="default", help="slug of its project, made if it is new")
        parser.add_argument(
            "--scope",
            nargs="+",
            action="extend",
            metavar="S",
            help=f"may be repeated: {', '.join(Scope)}, or agents:SLUG:run (default: admin)",
        )
        parser.add_argument("--test", action="store_true", help="a key that begins with engine_test_")

    def handle(self, *args: Any, **options: Any) -> None:
        key = self.checked(
            NewKey,
            name=options["name"],
            scopes=options["scope"] or [Scope.ADMIN],
            mode="test" if options["test"] else "live",
        )
        project = self.checked(NewProject, slug=options["project"])
        by = Caller(project=None, scopes=frozenset({Scope.ADMIN}), via="cli")
        try:
            with transaction.atomic():
                owner = Project.objects.filter(slug=project["slug"]).first()
                owner = owner or services.create_project(by, **project)
                _, secret = services.create_key(by, project=owner, **key)
        except EngineError as exc:
            raise CommandError(exc.detail) from exc
        self.stdout.write(secret)

    def checked(self, serializer: type[NewKey] | type[NewProject], **arguments: Any) -> dict[str, Any]:
        """The arguments, held to the same rules as a request's body."""
        body = serializer(data=arguments)
        if body.is_valid():
            return dict(body.validated_data)
        faults = [f"{fault['pointer'].lstrip('/')}: {fault['detail']}" for fault in field_errors(body.errors)]
        raise CommandError("; ".join(faults))
