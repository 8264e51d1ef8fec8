"""Loss, perplexity and bits per byte of validation rows, by domain and averaged.

Micro averages pool all tokens (bytes); macro averages give each domain the same weight. Bits per byte compare across
tokenizers: the loss of the tokens that stand for text, in bits, over the UTF-8 bytes they stand for; special tokens
count neither way. Losses are summed before they are divided, never averaged over batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _scores(loss: float, tokens: float, text_loss: float, text_bytes: float) -> dict[str, float]:
    mean = loss / tokens if tokens else math.nan
    return {
        "loss": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_byte": text_loss / (math.log(2) * text_bytes) if text_bytes else math.nan,
        "tokens": tokens,
        "bytes": text_bytes,
    }


def by_domain(
    domains: Sequence[str], domain: Tensor, *, loss: Tensor, tokens: Tensor, text_loss: Tensor, text_bytes: Tensor
) -> dict[str, dict]:
    """Scores by domain with micro and macro averages, of per-row sums (n,) and each row's domain number (n,).

    loss: nats per token; perplexity: its exponential; the macro perplexity is the exponential of the macro loss.
    """
    columns = torch.stack([loss, tokens, text_loss, text_bytes], 1).double()  # (n, 4)
    sums = torch.zeros(len(domains), 4, dtype=torch.float64).index_add_(0, domain, columns)
    scores = {name: _scores(*sums[k].tolist()) for k, name in enumerate(domains)}
    present = [score for score in scores.values() if score["tokens"]]
    macro_loss = sum(score["loss"] for score in present) / len(present)
    macro = {
        "loss": macro_loss,
        "perplexity": math.exp(min(macro_loss, 700.0)),
        "bits_per_byte": sum(score["bits_per_byte"] for score in present) / len(present),
    }
    return {"domains": scores, "micro": _scores(*sums.sum(0).tolist()), "macro": macro}
