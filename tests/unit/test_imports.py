"""Imports point one way, and the heavy libraries stay out of the core, the strategies and the command line's start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "regimen"
STRATEGIES = ("selection", "mixing", "ordering", "weighting")
ALLOWED = {
    "core": set(),
    "data": {"core"},
    "signals": {"core"},
    **{kind: {"core", "signals"} for kind in STRATEGIES},
    "evaluation": {"core"},
    "training": {"core", "signals", "data", "evaluation"},
    "reports": {"core", "evaluation"},
    "runs": {"core", "signals", "data", "evaluation", "training", *STRATEGIES},
}
PURE = {"core": {"torch", "numpy"}, **{kind: {"torch", "numpy"} for kind in (*STRATEGIES, "signals")}}
FITTERS = {"scipy", "lightgbm"}  # of the mixing laws
# Formats and indices that a file of a pure folder reads when it needs them.
LAZY = {"signals/file_scores.py": {"pyarrow"}, "selection/neighbours.py": {"faiss"}}
FILES = sorted(path for package in ALLOWED for path in (SRC / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_upward_import(path: Path) -> None:
    package = path.relative_to(SRC).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "regimen" and len(parts) > 1:
            assert parts[1] == package or parts[1] in ALLOWED[package], f"{package} must not import {name}"
        elif package in PURE and parts[0] != "regimen" and parts[0] not in sys.stdlib_module_names:
            fits = FITTERS if "laws" in path.parts else set()
            lazy = LAZY.get(str(path.relative_to(SRC)), set())
            assert parts[0] in PURE[package] | fits | lazy, f"{package} must not import {name}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("regimen.cli", {"torch", "hydra", "transformers", "pytorch_lightning", "datasets", "wandb", "matplotlib"}),
        ("regimen.runs.jobs", {"torch", "transformers", "pytorch_lightning", "datasets", "wandb"}),
        ("regimen.reports", {"torch", "matplotlib", "hydra", "pytorch_lightning"}),
        ("regimen.core.stream", {"transformers", "pytorch_lightning", "datasets", "hydra"}),
    ],
)
def test_start_is_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted(set({sorted(heavy)!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_files_and_functions_stay_small() -> None:
    """The limits of CONTRIBUTING.md: 300 lines a file, 50 a function."""
    for path in SRC.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"
