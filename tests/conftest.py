"""Tests that search for examples find the same ones every time: a new one belongs in a test of its own."""

import os

import torch
from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: more threads would only wait
    torch.set_num_threads(1)
