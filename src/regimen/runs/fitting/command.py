"""`regimen fit`: a mixing law from tables or runs. Nothing heavy is imported until a law is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError, closest
from regimen.runs.fitting.laws import LAWS, OF_LAW, make_law, number

FIT = {
    "law": "bimix, regmix_lightgbm, regmix_linear, mixing_laws, olmix or mixmin",
    "runs": "a sweep folder of finished runs, or several separated by commas",
    "mixtures": "CSV of training mixtures: row names, then a share per domain",
    "losses": "CSV of what they led to: the same row names, then a loss per target",
    "test_mixtures": "CSV of mixtures to test on; default: mixtures are held out in turn",
    "test_losses": "CSV of their losses",
    "target": "the loss to lower: a column, several separated by commas, or mean (default)",
    "unit": "of runs' losses: loss (default) or bits_per_byte",
    "natural": "natural shares, any scale: CSV of domain,tokens or {web: 3, code: 1}; runs know theirs",
    "normalise": "true: divide each mixture by its sum (default: false, rounded tables stay as they are)",
    "min_share": "smallest share of each domain (default 0)",
    "max_share": "largest share of each domain (default 1)",
    "caps": "largest share by domain: {web: 0.5}",
    "kl": "weight of the divergence from the natural shares (default: the law's, 0.05 for olmix, else 0)",
    "rho": "no domain is repeated more often than this; needs tokens and pool",
    "tokens": "tokens of the run to come",
    "pool": "tokens of each domain: CSV of domain,tokens or {web: 3e9, code: 1e9}; also the natural shares",
    "draws": "mixtures to simulate for laws without an exact optimum (default 100000)",
    "top": "how many of the best are averaged (default 128)",
    "at_step": "with runs=: propose for a run of so many steps; losses are extrapolated to it",
    "at_size": "with runs= of three model sizes or more: propose for so many parameters, embeddings left out",
    "seed": "of held-out folds and simulation (default 0)",
    "run_dir": "where fit.json and fit.png go; default: outputs/fit-LAW",
}


def is_known(key: str) -> bool:
    """Whether `key` is a setting of `regimen fit`, those of a law included."""
    return key in FIT or key.startswith(OF_LAW)


def main(settings: Mapping[str, str]) -> int:
    """Fit what key=value settings say, write fit.json and fit.png, and print a summary. Returns the exit status."""
    for key, value in settings.items():
        if not is_known(key):
            raise ConfigError(
                f"regimen fit does not know {f'{key}={value}'!r}{closest(key, FIT)}",
                allowed=", ".join(f"{known}=..." for known in (*FIT, "law.SETTING")),
            )
    if "law" not in settings:
        raise ConfigError("regimen fit needs a law", allowed=", ".join(LAWS), do="regimen fit law=bimix runs=FOLDER")
    _check_sources(settings)
    law = make_law(settings["law"], {k.removeprefix(OF_LAW): v for k, v in settings.items() if k.startswith(OF_LAW)})
    out = Path(settings.get("run_dir") or f"outputs/fit-{settings['law']}")
    content = _fit(law, settings, out)
    print("\n".join(report(content, out)))
    return 0


def _check_sources(settings: Mapping[str, str]) -> None:
    tables = [key for key in ("mixtures", "losses") if key in settings]
    if ("runs" in settings) == bool(tables) or len(tables) == 1:
        raise ConfigError(
            "regimen fit needs either runs or two tables",
            got=", ".join(key for key in ("runs", "mixtures", "losses") if key in settings) or "none of them",
            do="runs=outputs/SWEEP, or mixtures=MIXTURES.csv losses=LOSSES.csv",
        )
    tests = [key for key in ("test_mixtures", "test_losses") if key in settings]
    if len(tests) == 1 or (tests and "runs" in settings):
        raise ConfigError(
            "test tables come in pairs, beside training tables",
            got=", ".join(tests),
            do="give test_mixtures=CSV and test_losses=CSV, or neither",
        )


def _fit(law: Any, settings: Mapping[str, str], out: Path) -> dict[str, Any]:
    from regimen.mixing.laws.mixmin import MixMin
    from regimen.mixing.laws.propose import Simulation
    from regimen.runs.fitting.fit import fit_runs, fit_table
    from regimen.runs.fitting.tables import read_tables, with_natural

    seed = int(number("seed", settings.get("seed", "0"), int))
    simulated = {key: int(number(key, settings[key], int)) for key in ("draws", "top") if key in settings}
    common = {"target": settings.get("target", "mean"), "constraints": _constraints(settings), "seed": seed}
    if "runs" in settings:
        folders = [Path(part) for part in settings["runs"].split(",")]
        unit = settings.get("unit", "loss")
        common |= {key: number(key, settings[key], float) for key in ("at_step", "at_size") if key in settings}
        return fit_runs(law, folders, out, unit=unit, simulation=Simulation(seed=seed, **simulated), **common)
    if isinstance(law, MixMin):
        raise ConfigError(
            "MixMin is fitted to what models make of each row, which tables of losses do not say",
            got="mixtures=..., losses=...",
            do="regimen fit law=mixmin runs=FOLDER, one run per domain",
        )
    tables = read_tables(Path(settings["mixtures"]), Path(settings["losses"]))
    natural = shares_by_name(settings.get("natural") or settings.get("pool"), "natural")
    tables = with_natural(tables, natural)
    table, test = tables.table, None
    if "test_mixtures" in settings:
        paths = Path(settings["test_mixtures"]), Path(settings["test_losses"])
        test = read_tables(*paths, like=tables).table
    if settings.get("normalise", "false").lower() in ("true", "1", "yes"):
        table, test = table.normalised(), test and test.normalised()
    common["target"] = ",".join(tables.short(name.strip()) for name in common["target"].split(","))
    simulation = Simulation(seed=seed, **simulated)
    return fit_table(law, table, out, test=test, simulation=simulation, **common)


def _constraints(settings: Mapping[str, str]) -> Any:
    from regimen.mixing.laws.constraints import Constraints

    given: dict[str, Any] = {
        key: number(key, settings[key], float)
        for key in ("min_share", "max_share", "kl", "rho", "tokens")
        if key in settings
    }
    given["caps"] = shares_by_name(settings.get("caps"), "caps")
    pool = shares_by_name(settings.get("pool"), "pool")
    if pool is not None and ("rho" in settings or "tokens" in settings):
        given["pool"] = pool
    return Constraints(**given)


def shares_by_name(text: str | None, key: str) -> dict[str, float] | None:
    """Numbers by name from `{web: 3, code: 1}` or a CSV file of lines `web,3`. Raises ConfigError for other text."""
    if text is None:
        return None
    import yaml  # type: ignore[import-untyped]  # comes with omegaconf

    if text.strip().startswith("{"):
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key} cannot be read", got=text, do=f"'{key}={{web: 0.5, code: 0.1}}'") from error
        return {str(name): number(f"{key}: {name}", value, float) for name, value in given.items()}
    path = Path(text)
    if not path.is_file():
        raise ConfigError(
            f"{key} is neither a table nor a file", got=text, do=f"'{key}={{web: 3, code: 1}}' or {key}=CSV"
        )
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(len(cells) == 2 for cells in lines):
        raise ConfigError(f"{path} is no table of two columns", allowed="a line `domain,number` for each domain")
    rows = lines[1:] if not _is_number(lines[0][1]) else lines
    return {name.strip(): number(f"{path}: {name}", value, float) for name, value in rows}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def report(content: Mapping[str, Any], out: Path) -> list[str]:
    """The lines that `regimen fit` prints about a fit."""
    held, predicted, natural = content["held_out"], content["predicted"], content["natural"] or {}
    target = ", ".join(content["target"]) if len(content["target"]) <= 3 else f"mean of {len(content['target'])}"
    lines = [f"{content['law']} fitted to {content['rows']} rows in {content['seconds']:.1f} s; target: {target}", ""]
    if content["mae"] is not None:
        lines.append(f"{'':<24}{'spearman':>10}{'mae':>10}{'r2':>10}{'rows':>7}")
        lines.append(_quality_line("fitted rows", {**content, "rows": content["judged_rows"]}))
        lines.append(_quality_line(held["kind"], held) if held else "no rows could be held out")
        lines.append("")
    elif held:
        lines.append(f"{held['proposed']:.4f} at the proposed mixture on {held['rows']} rows that were held out, ")
        lines[-1] += f"{held['natural']:.4f} at the natural one"
        lines.append("")
    width = max(24, *(len(name) + 2 for name in content["mixture"]))
    lines.append(f"{'domain':<{width}}{'proposed':>10}{'natural':>10}")
    for name, share in sorted(content["mixture"].items(), key=lambda item: -item[1]):
        lines.append(f"{name:<{width}}{share:>10.4f}{_text(natural.get(name)):>10}")
    at_natural = f", {predicted['natural']:.4f} at the natural one" if predicted["natural"] is not None else ""
    lines += ["", f"predicted {content['unit']}: {predicted['proposed']:.4f} at the proposed mixture{at_natural}"]
    lines += [f"note: {note}" for note in content["notes"]]
    return [*lines, "", f"{out / 'fit.json'}  {out / 'fit.png'}"]


def _quality_line(name: str, of: Mapping[str, Any]) -> str:
    cells = "".join(f"{_text(of[key]):>10}" for key in ("spearman", "mae", "r2"))
    return f"{name:<24}{cells}{of['rows']:>7}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
