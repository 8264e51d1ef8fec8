"""RegMix: gradient-boosted trees from shares to each loss.

Letters: n rows, K domains, T targets.
Paper: Liu et al., RegMix, arXiv 2407.01492v2, section 3 and appendix (1000 rounds, learning rate 0.01, seed 42).

Differs from the paper:
- No early stopping by default. The authors' notebook stops on the rows that it then tests on; `early_stopping` stops on
  a part of the training rows instead.
- Trees grow in one thread, so that a fit is the same on every machine.
The rest is the paper's and LightGBM's defaults, `min_data_in_leaf` 20 among them: a leaf needs that many mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.mixing.laws.law import Fitted, Law, at_least_zero, positive, whole
from regimen.mixing.laws.table import Array, LawTable


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedTrees(Fitted):
    """One booster per target. The best mixture is found by simulation: trees have no slopes."""

    boosters: tuple[Any, ...]

    def _predict(self, mixtures: Array) -> Array:
        return np.stack([np.asarray(booster.predict(mixtures)) for booster in self.boosters], 1)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            name: {
                "trees": int(booster.num_trees()),
                "gain": dict(zip(self.domains, booster.feature_importance("gain").tolist(), strict=True)),
            }
            for name, booster in zip(self.targets, self.boosters, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class RegMixLightGBM(Law):
    """LightGBM per target.

    early_stopping: share of the training rows, drawn with `seed`, that training watches and does not use; it stops
        after `patience` rounds without a better error there. 0 turns it off.
    """

    rounds: int = 1000
    learning_rate: float = 0.01
    min_data_in_leaf: int = 20
    num_leaves: int = 31
    early_stopping: float = 0.0
    patience: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        whole(self, rounds=self.rounds, min_data_in_leaf=self.min_data_in_leaf, patience=self.patience)
        whole(self, least=2, num_leaves=self.num_leaves)
        whole(self, least=0, seed=self.seed)
        positive(self, learning_rate=self.learning_rate)
        at_least_zero(self, early_stopping=self.early_stopping)
        if self.early_stopping >= 1:
            at_least_zero(self, early_stopping=float("inf"))

    def minimum_rows(self, table: LawTable) -> int:
        """Two leaves' worth: with fewer, every prediction is the mean."""
        return max(3, int(np.ceil(2 * self.min_data_in_leaf / (1 - self.early_stopping))))

    def with_few_rows(self) -> str:
        return "train more mixtures, allow smaller leaves: law.min_data_in_leaf=2, or take law=regmix_linear"

    def _fit(self, table: LawTable, weights: Array) -> Fitted:
        order = np.random.default_rng(self.seed).permutation(len(table))
        watched = order[: round(self.early_stopping * len(table))]
        trained = np.setdiff1d(np.arange(len(table)), watched)
        boosters = [
            self._booster(table.mixtures, table.losses[:, t], trained, watched) for t in range(len(table.targets))
        ]
        return FittedTrees(
            domains=tuple(table.domains),
            targets=tuple(table.targets),
            weights=weights,
            natural=table.natural,
            boosters=tuple(boosters),
        )

    def _booster(self, mixtures: Array, losses: Array, trained: Any, watched: Any) -> Any:
        import lightgbm

        settings = {
            "boosting": "gbdt",
            "objective": "regression",
            "metric": "l2",
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_data_in_leaf,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(mixtures[trained], label=losses[trained])
        if not len(watched):
            return lightgbm.train(settings, data, num_boost_round=self.rounds)
        held = lightgbm.Dataset(mixtures[watched], label=losses[watched], reference=data)
        stop = lightgbm.early_stopping(self.patience, verbose=False)
        return lightgbm.train(settings, data, num_boost_round=self.rounds, valid_sets=[held], callbacks=[stop])
