"""Instruction data that every installation has: functions of the standard library and their docstrings.

The instruction asks for the docstring of a function, the input is its source without it, the output is the docstring.
A domain is a package of the standard library, or several small ones together. Needs no network and no download.
"""

from __future__ import annotations

import ast
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regimen.data.settings import DatasetSettings
from regimen.data.sources.conversations import as_text
from regimen.data.sources.local import SKIPPED_FOLDERS
from regimen.data.sources.records import BadRecords, Record

INSTRUCTION = "Write the docstring of this function."
DOMAINS = {
    "asyncio": ("asyncio", "concurrent", "multiprocessing"),
    "email": ("email",),
    "importlib": ("importlib",),
    "logging": ("logging",),
    "modules": (),  # single files
    "unittest": ("unittest",),
    "web": ("http", "urllib", "wsgiref", "xmlrpc", "html"),
    "xml": ("xml",),
}
MAX_CHARACTERS = 4000  # of a function: longer ones are mostly not about what the docstring says


class LocalSftSource:
    """Pairs of source and docstring, up to `max_mb_per_domain` of each domain."""

    def __init__(self, settings: DatasetSettings) -> None:
        self.limit = int(settings.max_mb_per_domain * 1e6)
        self.root = Path(sysconfig.get_path("stdlib"))

    def identity(self) -> Any:
        """The version of Python: its library comes with it."""
        return {"python": platform.python_version(), "limit": self.limit}

    def parts(self) -> list[str]:
        return list(DOMAINS)

    def read(self, part: str, bad: BadRecords) -> Iterator[Record]:
        taken = 0
        for path in self._files(part):
            name = path.relative_to(self.root).as_posix()
            for line, source, docstring in _pairs(path):
                text = as_text([["user", INSTRUCTION, source], ["assistant", docstring]])
                taken += len(text.encode())
                if taken > self.limit:
                    return
                yield Record(part, f"{name}:{line}", text, name, line)

    def _files(self, part: str) -> list[Path]:
        if part == "modules":
            return sorted(self.root.glob("*.py"))
        found = [path for package in DOMAINS[part] for path in (self.root / package).rglob("*.py")]
        return sorted(f for f in found if not SKIPPED_FOLDERS.intersection(f.relative_to(self.root).parts))


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, source without the docstring, docstring) of each documented function that does something."""
    text = path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring, first = ast.get_docstring(node), node.body[0]
        if not docstring or first.lineno == node.lineno or node.body[1].lineno == first.end_lineno:
            continue
        kept = [*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno : node.end_lineno]]
        source = inspect.cleandoc("\n" + "\n".join(kept))
        if len(source) <= MAX_CHARACTERS:
            yield node.lineno, source, docstring
