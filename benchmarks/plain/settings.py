"""Engine's settings, with the plain application beside it."""

from engine.settings import *  # noqa: F403
from engine.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.plain"]
ROOT_URLCONF = "benchmarks.plain.urls"
