"""What the commands about agents share: on whose behalf they act, and how they show progress."""

from django.core.management.base import BaseCommand, CommandError

from agents.embeddings import Progress
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope


def operator(project: str | None) -> Caller:
    """Whoever sits at the command line, inside a project, or outside all for shared agents."""
    owner = None
    if project is not None:
        owner = Project.objects.filter(slug=project).first()
        if owner is None:
            raise CommandError(f"There is no project {project!r}. `manage.py createkey --project` makes one.")
    return Caller(project=owner, scopes=frozenset({Scope.ADMIN}), via="cli")


def show_progress(command: BaseCommand, done_word: str) -> Progress:
    """Writes "120/1000 embedded" whenever another twentieth is done."""
    shown = -1

    def progress(done: int, of: int) -> None:
        nonlocal shown
        twentieth = 20 * done // of if of else 20
        if of and twentieth > shown:
            shown = twentieth
            command.stdout.write(f"{done}/{of} {done_word}")
            command.stdout.flush()

    return progress
