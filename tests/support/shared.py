"""Published tables that lie beside a checkout and are not part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA = SHARED / "data"


def shared(path: str) -> Path:
    """A file of the published tables; skips the test where they are absent."""
    file = DATA / path
    if not file.is_file():
        pytest.skip(f"needs {path} in ../shared/data beside the checkout")
    return file
