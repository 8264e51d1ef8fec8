"""A model that learns the scores of some rows and then gives those of all: an encoder, a mean, a linear head.

Papers: DELT, arXiv 2506.21545, section 3.2 and appendix; PDS, arXiv 2410.07064, section 3.3: scores standardised and
cut to 3, a language model whose last hidden states are averaged over the tokens, mean squared error, the epoch with the
best rank correlation on held-out scores.
Differs from the papers:
- It reads the pool's own tokens, by a model of the user's choice; the papers' is fairseq-dense-125M on its own tokens.
- Held-out rows are drawn at random, where DELT's code takes the first ones of its corpus, in the order of the corpus.
- The best epoch is kept and loaded again; DELT's code never updates the best value and scores by the latest weights.
- It runs in evaluation mode, without dropout. The head starts at 0, which is the mean score.
Every rank trains alike on its own; rank 0's model then scores, and the rows are shared out.
Letters: n rows in all, m with known scores, b rows of a part, L positions, w width.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import GRADIENT
from regimen.core.plan import digest_of
from regimen.core.ranks import spearman
from regimen.core.scoring import Scorer
from regimen.signals.pooling import pool_states
from regimen.training.cost import body_flops, rows_flops
from regimen.training.halfway import Charged, Halfway
from regimen.training.loader import Batch
from regimen.training.states import base_output
from regimen.training.sweep import Sweeper, undisturbed

_CHUNK = 65_536  # rows whose scores are kept at a time


class RowScorer(nn.Module):
    """A score (b,) per row: a linear function of the mean of the last hidden states of a causal language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.float().eval()
        config: Any = model.config
        self.head = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        told = {"input_ids": batch.inputs, "position_ids": batch.positions, "use_cache": False}
        states = base_output(self.model, **told).last_hidden_state  # (b, L, w)
        scores: Tensor = self.head(pool_states(states.float(), batch.lengths, "mean"))[:, 0]  # (b,)
        return scores


def learnt_scores(
    sweeper: Sweeper, model: nn.Module, ids: Tensor, places: Tensor, scores: Tensor, how: Scorer, halfway: Halfway
) -> Tensor:
    """Scores (n,) float64 of rows `ids` (n,), in units of standard deviations, by what a model learns from some.

    model: is changed. places: (m,) where the rows with known scores (m,) are among `ids`. halfway: keeps the training
    after each epoch, and scores as they come. Collective; all is charged.
    Raises ConfigError for scores that are not finite, or all the same.
    """
    wanted = standard(scores, how.clip_scores)
    name = f"scorer-{digest_of(*model.state_dict().values(), ids, places, scores, how)}"
    scorer = RowScorer(model).to(sweeper.module.device)
    kept = Charged(halfway, name, clock=sweeper.clock, purpose=sweeper.purpose)
    with undisturbed(sweeper.module, gradients=True):
        told = _Training(scorer, sweeper, ids[places], wanted, how).run(kept)
    halfway.told["scorer"] = told
    if sweeper.trainer.is_global_zero:
        best = told["spearman"][told["best"]]
        of = f"{len(how.split(len(places))[0]):,} held-out scores, after epoch {told['best'] + 1} of {how.epochs}"
        print(f"scorer: rank correlation {best:.3f} with {of}", file=sys.stderr)
    out = []
    for number, part in enumerate(ids.split(_CHUNK)):
        kept = Charged(halfway, f"{name}-{number}", clock=sweeper.clock, purpose=sweeper.purpose)
        found = kept.read()
        if found is None:
            found = {"scores": predicted(scorer, sweeper, part)}
            kept.write(found)
        out.append(found["scores"])
    return torch.cat(out)


def standard(scores: Tensor, most: float) -> Tensor:
    """Scores (m,) with mean 0 and variance 1, cut to -most and most."""
    if not bool(torch.isfinite(scores).all()):
        got = f"{int((~torch.isfinite(scores)).sum())} of {len(scores)}"
        raise ConfigError(
            "scores to learn from must be finite", got=got, do="look at these rows, or set scorer.model=none"
        )
    spread = scores.std(correction=0)
    if not bool(spread > 0):
        got = f"{len(scores)} times {float(scores[0])}"
        raise ConfigError(
            "all scores to learn from are the same", got=got, do="set scorer.model=none, or another signal"
        )
    return ((scores - scores.mean()) / spread).clamp(-most, most)


def predicted(scorer: RowScorer, sweeper: Sweeper, ids: Tensor) -> Tensor:
    """Scores (n,) float64 of rows `ids` (n,), rows of one length together, over all ranks. Charged."""

    def of(part: Tensor) -> Tensor:
        with torch.no_grad(), sweeper.trainer.precision_plugin.forward_context():
            return scorer(sweeper.batch(part)).double()[:, None]  # (b, 1)

    found = sweeper.spread(ids, of, passes=0.0)[:, 0]
    sweeper.clock.add(sweeper.purpose, flops=_flops(scorer, sweeper, ids))
    return found


def _flops(scorer: RowScorer, sweeper: Sweeper, ids: Tensor) -> float:
    return rows_flops(lambda context: body_flops(scorer.model, context), sweeper.index.inputs_of(ids))


class _Training:
    """AdamW on the mean squared error of scores (m,) of rows `ids` (m,)."""

    def __init__(self, scorer: RowScorer, sweeper: Sweeper, ids: Tensor, scores: Tensor, how: Scorer) -> None:
        self.scorer, self.sweeper, self.ids, self.scores, self.how = scorer, sweeper, ids, scores.float(), how
        self.held, self.learnt = how.split(len(ids))
        self.trained = [p for p in scorer.parameters() if p.requires_grad]
        betas, decay = (0.9, 0.999), how.weight_decay
        self.optimizer = torch.optim.AdamW(self.trained, lr=how.lr, betas=betas, eps=1e-8, weight_decay=decay)
        self.steps = -(-len(self.learnt) // how.batch_rows)  # of an epoch

    def run(self, kept: Charged) -> dict[str, Any]:
        """Train, go on with a training, or find it done; the best weights are loaded. Returns what to tell of it."""
        state = kept.read() or {"epoch": 0, "spearman": [], "best": 0, "weights": None}
        if 0 < state["epoch"] < self.how.epochs:
            self.scorer.load_state_dict(state["now"])
            self.optimizer.load_state_dict(state["optimizer"])
        for epoch in range(state["epoch"], self.how.epochs):
            with self.sweeper.clock.timed(self.sweeper.purpose):
                self._epoch(epoch)
            found = spearman(predicted(self.scorer, self.sweeper, self.ids[self.held]), self.scores[self.held])
            state = self._after(epoch, found, state)
            kept.write(state)
        self.scorer.load_state_dict(self._from_zero(state["weights"]))
        return {"spearman": state["spearman"], "best": state["best"], "rows": len(self.ids)}

    def _after(self, epoch: int, found: float, before: dict[str, Any]) -> dict[str, Any]:
        """The state after an epoch. weights: of the best one so far, the first of equals."""
        now = copy.deepcopy(self.scorer.state_dict())
        course = [*before["spearman"], found]
        best = max(range(len(course)), key=course.__getitem__)
        state = {"epoch": epoch + 1, "spearman": course, "best": best}
        state["weights"] = now if best == epoch else before["weights"]
        if epoch + 1 < self.how.epochs:
            state |= {"now": now, "optimizer": copy.deepcopy(self.optimizer.state_dict())}
        return state

    def _epoch(self, epoch: int) -> None:
        order = self.learnt[self.how.order(len(self.learnt), epoch)]
        for number, batch in enumerate(order.split(self.how.batch_rows)):
            self._step(batch, epoch * self.steps + number)

    def _step(self, places: Tensor, step: int) -> None:
        """A step on rows at `places` (b,) of those with known scores."""
        sweeper, ids = self.sweeper, self.ids[places]
        places = places[sweeper.index.inputs_of(ids).argsort(stable=True)]
        total: list[Tensor | None] = [None] * len(self.trained)  # a head that predicts tokens stays as it is
        for part in places.split(sweeper.gradient_rows):
            with sweeper.trainer.precision_plugin.forward_context():
                off = self.scorer(sweeper.batch(self.ids[part])) - self.scores[part].to(sweeper.module.device)
            found = torch.autograd.grad((off.float() ** 2).sum() / len(places), self.trained, allow_unused=True)
            total = [g if a is None else a if g is None else a + g for a, g in zip(total, found, strict=True)]
        self._go_down(total, step)
        world = sweeper.trainer.world_size
        flops = _flops(self.scorer, sweeper, ids) * GRADIENT * world
        sweeper.clock.add(sweeper.purpose, tokens=float(sweeper.index.tokens_of(ids).sum()) * world, flops=flops)

    def _go_down(self, gradients: Sequence[Tensor | None], step: int) -> None:
        for p, g in zip(self.trained, gradients, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(self.trained, self.how.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.how, step, self.steps * self.how.epochs)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _from_zero(self, weights: Any) -> Any:
        trainer = self.sweeper.trainer
        return trainer.strategy.broadcast(weights, src=0) if trainer.world_size > 1 else weights


def learning_rate(how: Scorer, step: int, steps: int) -> float:
    """Of the step from 0 out of `steps`: a linear rise over `warmup` steps, then a cosine to final_lr."""
    if step < how.warmup:
        return how.lr * (step + 1) / how.warmup
    done = (step - how.warmup) / max(steps - how.warmup, 1)
    return how.final_lr + (how.lr - how.final_lr) * (1 + math.cos(math.pi * done)) / 2
