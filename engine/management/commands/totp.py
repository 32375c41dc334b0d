"""One-time codes for the dashboard's login."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django_otp.plugins.otp_totp.models import TOTPDevice

from apikeys.callers import Caller
from apikeys.services import audit


class Command(BaseCommand):
    """`manage.py totp NAME`: give a person one-time codes, or take them away."""

    help = (
        "Set up one-time codes (TOTP) for a person who signs in to the dashboard. What it prints is a secret."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the name that the person signs in with")
        parser.add_argument("--remove", action="store_true", help="take the codes away: the phone is lost")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        person = User.objects.filter(username=options["name"]).first()
        if person is None:
            raise CommandError(
                f"There is nobody named {options['name']}. manage.py createsuperuser makes somebody."
            )
        TOTPDevice.objects.filter(user=person).delete()
        by = Caller(None, frozenset(), via="cli")
        if options["remove"]:
            audit(by, "person.codes_removed", f"person:{person}")
            self.stdout.write(f"{person} signs in without one-time codes now.")
            return
        device = TOTPDevice.objects.create(user=person, name="authenticator", confirmed=True)
        audit(by, "person.codes_set", f"person:{person}")
        self.stdout.write(f"Add this to an authenticator; it is shown once:\n\n  {device.config_url}\n")
