"""Where the configuration is, and which settings can change a result.

What cannot is in no hash, binds no resume and makes no two runs differ.
"""

from __future__ import annotations

from pathlib import Path

LAYOUT = (
    *("logger", "paths", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.micro_batch_size", "trainer.sweep_batch_size", "trainer.threads", "trainer.progress"),
    *("trainer.log_every", "trainer.save_every_steps", "trainer.save_every_minutes", "trainer.keep_checkpoints"),
    "trainer.group_by_length",
)
"""How work is laid out on devices, what is logged and how often is saved: a resume may change these."""

NOT_RESULT = (
    *LAYOUT,
    *("run_dir", "resume", "sweep", "choices", "shard", "hydra", "signal", "accept_other_version", "on_bad_record"),
    *("overrides", "only_stages", "score", "evaluation.decile_rows", "dry_run", "forecast"),
)
"""All settings, dotted, that cannot change a result."""


PENDING = "(what a stage will give)"
"""Stands for the path of a file that a stage has yet to write."""


def is_under(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def conf_dir() -> Path:
    """The configuration: inside the package in a wheel, beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"
