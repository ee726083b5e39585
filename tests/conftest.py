"""Tests that search for examples find the same ones every time: a new one belongs in a test of its own."""

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
