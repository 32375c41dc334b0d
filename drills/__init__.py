"""Rehearsals of what must never go wrong, on real processes. Not part of what is installed."""
