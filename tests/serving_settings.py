"""Engine's settings with the addresses of `tests.serving_urls`, to see how the web process treats requests."""

from engine.settings import *  # noqa: F403

ROOT_URLCONF = "tests.serving_urls"
