"""Shared by all tests: one torch thread, offline libraries, and where the optional shared material is."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

from tests.support.shared import SHARED

torch.set_num_threads(1)
# The same examples in every run, so that nothing fails by chance; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published tables and corpora that stands beside some checkouts."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with published tables and corpora is not here")
    return SHARED
