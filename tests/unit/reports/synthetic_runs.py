"""Run folders as the training side writes them, with a known effect: seed effects shared by all methods, and shifts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

DOMAINS = ("english", "math", "python")
STEPS = 300
TOKENS_PER_STEP = 4096
BASE = {"english": 1.40, "math": 1.10, "python": 0.90}
KINDS = {"odm": "mixer", "delt": "orderer", "topk": "selector", "random": "selector", "loss_weighting": "weighter"}
MEASURING = {"odm": 0.002, "delt": 0.03, "topk": 0.05}


def final_scores(seed: int, shift: float, noise: float, domains=DOMAINS) -> dict[str, float]:
    """Bits per byte by domain: base + effect of the seed (shared) + shift of the method + noise of the pair."""
    shared = 0.02 * math.sin(seed)
    own = np.random.default_rng([seed, round(1e6 * abs(shift)) + 1]).normal(0, noise, len(domains)) if noise else 0
    values = np.array([BASE.get(d, 1.2) for d in domains]) + shared + shift + own
    return dict(zip(domains, values.tolist(), strict=True))


def write_run(
    root: Path,
    method: str,
    seed: int,
    *,
    shift: float = 0.0,
    noise: float = 0.0,
    status: str = "finished",
    reason: str | None = None,
    model: str = "nano",
    dataset: str = "local",
    pool: str = "pool-a1",
    steps: int = STEPS,
    domains: tuple[str, ...] = DOMAINS,
    scores: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    stages: float = 0.0,
    folder: str | None = None,
    tokens_per_step: int = TOKENS_PER_STEP,
    start: float = 0.0,
    points: int = 13,
) -> Path:
    """One finished (or other) run; returns its folder.

    `start` is what its weights are worse by before training, `points` how often it is evaluated, step 0 included.
    """
    path = root / (folder or f"{method}-{model}-{dataset}-seed{seed}")
    path.mkdir(parents=True)
    scores = scores or final_scores(seed, shift, noise, domains)
    tokens, parameters = steps * tokens_per_step, 1_100_000
    training = 6.0 * parameters * tokens
    measuring = MEASURING.get(method, 0.0) * training
    overhead = 1 + MEASURING.get(method, 0.0)
    evaluation = _evaluation(scores, steps)
    summary = {
        "format": 1,
        "name": path.name,
        "status": status,
        "reason": reason,
        "method": method,
        "strategies": {m: {"kind": KINDS[m], "target": f"regimen.x.{m}"} for m in method.split("+") if m in KINDS},
        "model": model,
        "dataset": dataset,
        "seed": seed,
        "hash": f"{method}{seed}",
        "steps": steps,
        "tokens": tokens,
        "unique_tokens": int(0.9 * tokens),
        "parameters": parameters,
        "flops": {
            "training": training,
            "measuring": measuring,
            "evaluation": 0.1 * training,
            "stages": stages,
            "total": training + measuring + stages,
        },
        "seconds": {
            "training": 71.0,
            "measuring": 71 * (overhead - 1),
            "evaluation": 3.0,
            "total": 74 + 71 * (overhead - 1),
        },
        "peak_memory_mb": 812.5,
        "evaluation": evaluation,
        "mixture": _mixture_summary(method, domains),
        "versions": {"python": "3.11.7", "regimen": "0.1.0", "torch": "2.6.0", "numpy": "2.4.6"},
        "fingerprints": {"pool": pool, "tokenizer": "tok-77", "config": f"{method}{seed}"},
        "machine": {"cpu": "x86_64", "cores": 2, "gpu": None},
        "warnings": [],
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "metrics.jsonl").write_text(_metrics(scores, steps, training * overhead, tokens_per_step, start, points))
    (path / "record.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in record_rows(method, seed, steps, domains))
    )
    if config is not None:
        import yaml

        (path / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "name": path.name, **config}))
    return path


def _evaluation(scores: dict[str, float], step: int) -> dict[str, Any]:
    def row(bits: float) -> dict[str, float]:
        loss = bits * math.log(2) * 3.5
        return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}

    mean = sum(scores.values()) / len(scores)
    domains = {name: {**row(bits), "tokens": 20_000, "bytes": 70_000} for name, bits in scores.items()}
    return {"step": step, "domains": domains, "micro": row(mean - 0.05), "macro": row(mean)}


def _metrics(scores: dict[str, float], steps: int, flops: float, per_step: int, start: float, points: int) -> str:
    rows = []
    for step in np.linspace(0, steps, points).astype(int).tolist():
        share = step / steps
        extra = 3.2 * (math.exp(-7 * share) - math.exp(-7)) + (0.35 + start) * (1 - share)
        # A method's shift grows along training: all runs start from the same loss.
        now = {d: v + extra + (BASE.get(d, 1.2) - v) * (1 - share) for d, v in scores.items()}
        evaluation = _evaluation(now, step)
        row = {
            "step": step,
            "split": "eval",
            "tokens": step * per_step,
            "flops": flops * share,
            "seconds": 0.2 * step,
        }
        for column in ("micro", "macro"):
            row |= {f"{column}/{m}": evaluation[column][m] for m in ("loss", "bits_per_byte")}
        for name, values in evaluation["domains"].items():
            row |= {f"{name}/{m}": values[m] for m in ("loss", "bits_per_byte")}
        train = {"step": min(step + 1, steps), "split": "train", "tokens": step, "loss": 3.0, "loss/python": None}
        rows.append(train)
        rows.append(row)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _mixture_summary(method: str, domains: tuple[str, ...]) -> dict[str, Any]:
    natural = {d: (i + 1) / sum(range(1, len(domains) + 1)) for i, d in enumerate(domains)}
    if method != "odm":
        return {"realised": natural, "decided": None, "natural": natural}
    even = dict.fromkeys(domains, 1 / len(domains))
    return {"realised": even, "decided": even, "natural": natural}


def _course_row(i: int, step: int, scores: list[float], parts: list[dict[str, float]]) -> dict[str, Any]:
    """A line of what was served in the i-th of twenty parts of training."""
    return {
        "kind": "course",
        "strategy": "folding",
        "step": step,
        "rows": 240,
        "score": {"mean": scores[i - 1], "deviation": 0.5},
        "domains": parts[i - 1],
        "lowest_decile": {"loss": 4 - 0.1 * i + 0.3 * (i % 7) / 7, "rows": 16},
    }


def record_rows(method: str, seed: int, steps: int, domains: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the method's kind writes into record.jsonl."""
    rng = np.random.default_rng(seed)
    cost = {"seconds": 0.1, "tokens": 0, "flops": 0}
    if method == "odm":
        rows, logits = [], np.zeros(len(domains))
        for step in range(0, steps, max(1, steps // 25)):
            share = np.exp(logits) / np.exp(logits).sum()
            mixture = dict(zip(domains, share.tolist(), strict=True))
            rows.append(
                {"step": step, "kind": "mixer", "strategy": "odm", "digest": "d", "mixture": mixture, "cost": cost}
            )
            logits = logits + rng.normal(0.02 * (np.arange(len(domains)) - 1), 0.12)
        return rows
    if method == "delt":
        scores = [round(1 + (i % 7) / 4 + 0.02 * i, 4) for i in range(20)]
        shares = [rng.dirichlet(np.arange(1, len(domains) + 1) * 8).tolist() for _ in range(20)]
        parts = [dict(zip(domains, s, strict=True)) for s in shares]
        groups = {"all": {"rows": 4800, "scores": scores, "domains": parts}}
        decided = {"kind": "orderer", "strategy": "folding", "step": 0, "groups": groups, "cost": cost}
        return [decided, *(_course_row(i, max(steps * i // 20, i), scores, parts) for i in range(1, 21))]
    if method in ("topk", "random"):
        kept = {d: {"kept": min(1900, 300 * (i + 1)) + seed, "of": 2000} for i, d in enumerate(domains)}
        total = {key: sum(v[key] for v in kept.values()) for key in ("kept", "of")}
        signal = {"loss": {"kept_mean": 2.1, "all_mean": 3.0}}
        return [
            {
                "kind": "selector",
                "strategy": method,
                "step": 0,
                **total,
                "domains": kept,
                "signal": signal,
                "cost": cost,
            }
        ]
    if method == "loss_weighting":
        edges, counts = np.histogram(rng.lognormal(-0.08, 0.4, 256), bins=16)[::-1]
        histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
        return [
            {
                "kind": "weighter",
                "strategy": "loss_weighting",
                "step": step,
                "effective_sample_size": 0.95 - 0.15 * step / steps + 0.02 * float(rng.normal()),
                "mean": 1.0,
                "min": 0.2,
                "max": 3.0,
                "histogram": histogram,
            }
            for step in range(10, steps + 1, 10)
        ]
    return []


def write_grid(root: Path, *, seeds=(1, 2, 3), **settings: Any) -> Path:
    """Five methods with one shift each; noise small beside two of the shifts."""
    shifts = {"natural": 0.0, "odm": -0.021, "delt": -0.002, "topk": 0.015, "loss_weighting": 0.0031}
    for method, shift in shifts.items():
        for seed in seeds:
            noise = 0.0 if method == "natural" else 0.006
            write_run(root, method, seed, shift=shift, noise=noise, **settings)
    return root
