"""Write a card per method to docs/methods and the table of methods to README.md: `make docs`.

A method is found by its file in conf/method; what the card says comes from that file and the docstring of its class.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class

from regimen.core.signal import Signal

ROOT = Path(__file__).resolve().parents[1]
PROOFS = {  # reference tests that are not named after their method
    **{f"entropy_{kind}": "entropy" for kind in ("shannon", "joint", "conditional", "von_neumann")},
    **{law: f"{law}_law" for law in ("bimix", "regmix", "olmix", "mixmin")},
    **dict.fromkeys(("delt", "lqs", "pds"), "co_state"),
    "adapt_bm25": "adapt",
    "climb": "regmix_law",
    "doremi_proxy": "doremi",
    "doge_proxy": "doge",
    "dvemb_log": "dvemb",
    "in_run_values": "in_run_shapley",
    "shed_subset": "shed",
}
SHARED = (
    "fixed",
    "scores",
    "targeted",
    "topk",
)  # strategies that other methods' files use, whose papers are not theirs
BEGIN, END = "<!-- methods: written by `make docs` -->", "<!-- end of methods -->"


def read(path: Path) -> dict[str, Any]:
    """What is known of the method in one file: name, summary, file text, and its strategies as (kind, class)."""
    text = path.read_text()
    content = yaml.safe_load(text) or {}
    classes = [get_class(fields["_target_"]) for fields in content.get("strategies", {}).values()]
    fits = [get_class(spec["fit"]["_target_"]) for spec in content.get("stages", {}).values() if "fit" in spec]
    summary = text.splitlines()[1].removeprefix("# ")
    measured = [get_class(name) for name in targets(content.get("strategies", {}))]
    signals = [kind for kind in dict.fromkeys(measured) if issubclass(kind, Signal)]
    return {
        "name": path.stem,
        "summary": summary,
        "text": text,
        "classes": classes,
        "fits": fits,
        "signals": signals,
    }


def targets(tree: Any) -> list[str]:
    """Every `_target_` in a tree of settings."""
    if not isinstance(tree, dict):
        return []
    own = [tree["_target_"]] if "_target_" in tree else []
    return own + [name for value in tree.values() for name in targets(value)]


def paper(method: dict[str, Any]) -> str:
    """Links to the papers whose arXiv numbers the file names, or the docstring of a module of its own."""
    shared = [c for c in method["classes"] if c.__module__.rpartition(".")[2] in SHARED]
    own = [c for c in (*method["classes"], *method["fits"]) if c not in shared]
    sources = [method["summary"], *(inspect.getmodule(c).__doc__ or "" for c in own)]
    found = [n for source in sources for n in re.findall(r"\b\d{4}\.\d{5}\b", source)]
    return ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(found)) or "-"


def proof(name: str) -> str:
    """The reference test of a method, linked."""
    test = reference(name)
    return f"[test]({test.relative_to(ROOT)})" if test.is_file() else "contract tests only"


def reference(name: str) -> Path:
    """Where the reference test of a method is, if it has one."""
    return ROOT / "tests" / "reference" / f"test_{PROOFS.get(name, name)}.py"


def status(method: dict[str, Any]) -> str:
    """Told honestly: a method without a reference test runs and resumes, and nothing says that it is right."""
    if "experimental" in method["summary"].lower():
        return "experimental: the formula is not confirmed"
    return "complete" if reference(method["name"]).is_file() else "runs, unproven"


def card(method: dict[str, Any]) -> str:
    """One method as a page."""
    parts = [f"# {method['name']}", method["summary"], f"Papers: {paper(method)}. Proven by {proof(method['name'])}."]
    parts = [part.replace("](tests/", "](../../tests/") for part in parts]
    roles = {**dict.fromkeys(method["fits"], "law of a stage"), **dict.fromkeys(method["signals"], "what it measures")}
    for kind in (*method["fits"], *method["classes"], *method["signals"]):
        module = inspect.getdoc(inspect.getmodule(kind)) or ""
        role = roles.get(kind) or kind.kind
        parts += [f"## `{kind.__module__}.{kind.__name__}` ({role})", module, inspect.getdoc(kind) or ""]
    parts += ["## Settings", f"`regimen train method={method['name']}`, with any of these overridden:"]
    return "\n\n".join([*parts, f"```yaml\n{method['text'].rstrip()}\n```"]) + "\n"


def table(methods: list[dict[str, Any]]) -> str:
    """The table of methods, by kind."""
    order = ("selector", "mixer", "orderer", "weighter")
    rows = sorted(methods, key=lambda m: ([order.index(c.kind) for c in m["classes"]], m["name"]))
    lines = ["| method | kind | what it does | paper | proven by | status |", "|---|---|---|---|---|---|"]
    for m in rows:
        kinds = ", ".join(c.kind for c in m["classes"])
        link = f"[`{m['name']}`](docs/methods/{m['name']}.md)"
        lines.append(f"| {link} | {kinds} | {m['summary']} | {paper(m)} | {proof(m['name'])} | {status(m)} |")
    return "\n".join(lines)


def main() -> None:
    methods = [read(path) for path in sorted((ROOT / "conf" / "method").glob("*.yaml"))]
    folder = ROOT / "docs" / "methods"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for method in methods:
        (folder / f"{method['name']}.md").write_text(card(method))
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(methods)}\n{END}{after}")


if __name__ == "__main__":
    main()
