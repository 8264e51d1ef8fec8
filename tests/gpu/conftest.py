"""The corpus and the runs of the integration tests."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for exact resuming; read when the GPU is first used

from tests.integration.conftest import corpus, examples, home, one

__all__ = ["corpus", "examples", "home", "one"]
