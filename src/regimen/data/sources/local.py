"""Real text that every installation has, in five domains. Needs no network and no download.

python: the standard library. cpp: headers of the interpreter and of packages. docstrings: of packages, and the
interpreter's help topics. prose: descriptions, change logs and licences of packages. markup: JSON, YAML, HTML, CSS, JS,
XML and such files. Packages are the closure of regimen's own base dependencies, so that installing something else
changes nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from regimen.data.settings import DatasetSettings
from regimen.data.sources.records import BadRecords, Record

# Base dependencies of pyproject.toml, written out because a checkout that is run in place has no metadata. SciPy and
# LightGBM, which came later, are left out: their text would change every pool made before.
ROOTS = (
    "hydra-core", "omegaconf", "pytorch-lightning", "torch", "transformers", "tokenizers", "datasets", "wandb",
    "numpy", "pyarrow", "fsspec", "filelock", "psutil", "rich", "matplotlib", "tensorboard",
)  # fmt: skip
DOMAINS = ("cpp", "docstrings", "markup", "prose", "python")
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo",
    "_bundled", "_vendor", "vendored", "config",
}  # fmt: skip
MAX_CHARACTERS = 32_768  # of one document: many documents per domain make a better split than few
MAX_PIECES = 8  # documents that a long markup file gives; other files give their beginning
MAX_BYTES = 4 << 20  # of a file that is looked at
HEADERS = {".h", ".hpp", ".cuh", ".hh"}
MARKUP = {
    ".json", ".html", ".css", ".js", ".xml", ".svg", ".xsd", ".xsl", ".yaml", ".yml", ".toml", ".cmake", ".proto",
}  # fmt: skip
PROSE = {".md", ".rst", ".txt"}


class Candidate(NamedTuple):
    """A file that may become a document. `name` is the same on every machine with the same packages."""

    name: str
    path: Path


class LocalSource:
    """Text of the running Python installation, up to `max_mb_per_domain` of each domain."""

    def __init__(self, settings: DatasetSettings) -> None:
        self.limit = int(settings.max_mb_per_domain * 1e6)

    def identity(self) -> Any:
        """Versions of Python and of the packages."""
        versions = {name: dist.version for name, dist in self._packages.items()}
        return {"python": platform.python_version(), "packages": versions, "limit": self.limit}

    def parts(self) -> list[str]:
        return list(DOMAINS)

    def read(self, part: str, bad: BadRecords) -> Iterator[Record]:
        candidates, extract = self._domain(part)
        taken = 0
        seen: set[bytes] = set()
        for name, path in sorted(candidates, key=lambda c: (_order(c.name), c.name)):
            for number, text in enumerate(extract(path)):
                content = hashlib.blake2b(text.encode(), digest_size=16).digest()
                if content in seen or not _is_text(text):
                    continue
                seen.add(content)
                taken += len(text.encode())
                yield Record(part, f"{name}#{number}" if number else name, text, name, 0)
            if taken >= self.limit:
                return

    @cached_property
    def _packages(self) -> dict[str, importlib.metadata.Distribution]:
        return closure(ROOTS)

    def _domain(self, domain: str) -> tuple[list[Candidate], Callable[[Path], Iterator[str]]]:
        if domain == "python":
            return _stdlib({".py"}), _whole
        if domain == "cpp":
            own = _folder(Path(sysconfig.get_path("include")), HEADERS, "include")
            return own + self._package_files(HEADERS), _whole
        if domain == "docstrings":
            topics = [c for c in _stdlib({".py"}) if c.name == "python/pydoc_data/topics.py"]
            return self._package_files({".py"}) + topics, _docstrings
        if domain == "prose":
            named = self._package_files(PROSE, names=("METADATA", "LICENSE", "NOTICE", "AUTHORS", "COPYING"))
            return named + _stdlib(PROSE), _prose
        return self._package_files(MARKUP) + _stdlib(MARKUP), _pieces

    def _package_files(self, suffixes: set[str], names: tuple[str, ...] = ()) -> list[Candidate]:
        found = []
        for name, dist in self._packages.items():
            for file in dist.files or ():
                wanted = file.suffix in suffixes or (names and file.name.startswith(names))
                if wanted and ".." not in file.parts and not SKIPPED_FOLDERS.intersection(file.parts):
                    found.append(Candidate(f"{name}/{file.as_posix()}", Path(str(dist.locate_file(file)))))
        return found


def closure(roots: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that `roots` need, extras left out, by normalised name, sorted."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, importlib.metadata.Distribution] = {}
    queue = [canonicalize_name(root) for root in roots]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(canonicalize_name(requirement.name))
    return dict(sorted(found.items()))


def _stdlib(suffixes: set[str]) -> list[Candidate]:
    return _folder(Path(sysconfig.get_path("stdlib")), suffixes, "python")


def _folder(root: Path, suffixes: set[str], prefix: str) -> list[Candidate]:
    found = []
    for folder, folders, files in root.walk() if hasattr(root, "walk") else _walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("config-")]
        for name in files:
            path = folder / name
            if path.suffix in suffixes:
                found.append(Candidate(f"{prefix}/{path.relative_to(root).as_posix()}", path))
    return found


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Path.walk, which Python 3.11 lacks."""
    import os

    for folder, folders, files in os.walk(root):
        yield Path(folder), folders, files


def _order(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _content(path: Path) -> str:
    """The file as text; empty where it is missing, very large or not UTF-8."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return ""
    try:
        return path.read_bytes().decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""


def _whole(path: Path) -> Iterator[str]:
    yield _cut(_content(path))


def _pieces(path: Path) -> Iterator[str]:
    """There are few such files and some are long, so each gives several documents."""
    text = _content(path)
    for _ in range(MAX_PIECES):
        piece = _cut(text)
        text = text[len(piece) :]
        yield piece


def _prose(path: Path) -> Iterator[str]:
    """The text, without the header fields of a METADATA file."""
    text = _content(path)
    if path.name == "METADATA":
        text = text.partition("\n\n")[2]
    letters = sum(map(str.isalpha, text[:4000])) + text[:4000].count(" ")
    if letters > 0.7 * len(text[:4000]):
        yield _cut(text)


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module in one text; of the help topics one text each."""
    text = _content(path)
    if '"""' not in text and path.name != "topics.py":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    if path.name == "topics.py" and path.parent.name == "pydoc_data":
        topics = next(n.value for n in tree.body if isinstance(n, ast.Assign))
        yield from (_cut(topic) for topic in ast.literal_eval(topics).values())
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    yield _cut("\n\n".join(doc for doc in found if doc))


def _cut(text: str) -> str:
    """At most MAX_CHARACTERS, ending with a whole line where there is one."""
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[:MAX_CHARACTERS]
    return head[: head.rfind("\n") + 1] or head


def _is_text(text: str) -> bool:
    """Not empty, not binary, and not minified: lines of 200 characters or less on average."""
    if len(text.strip()) < 100 or "\0" in text:
        return False
    return len(text) / (text.count("\n") + 1) <= 200 and not re.search(r"\S{1000}", text)
