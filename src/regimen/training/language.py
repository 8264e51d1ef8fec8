"""Text in and out of a causal language model. Implements the `Language` that signals use.

Letters: n prompts, b of a part of them, T tokens, c tokens to choose from, V vocabulary, W ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regimen.core import seeding
from regimen.core.errors import ConfigError
from regimen.core.measuring import Encoded, Example
from regimen.data.examples import ExampleEncoder
from regimen.data.pool import Pool
from regimen.data.tokenizer import load
from regimen.training.attention import attention_weights, depth
from regimen.training.context import gathered
from regimen.training.generation import UNWRITTEN, Reader, Sampling, uncompiled, written
from regimen.training.passes import Passes
from regimen.training.sweep import Sweeper, undisturbed


class ModelLanguage:
    """Text in and out of `model`, a causal model of Hugging Face.

    tokenizer: the folder of its tokenizer. template: `alpaca` or `chat`, by which a prompt is made of an instruction.
    end: the token that ends a text; an answer also ends where the template ends one. context: positions of the model.
    """

    def __init__(
        self, model: nn.Module, *, tokenizer: Path, template: str, end: int, context: int, passes: Passes | None = None
    ) -> None:
        self.model, self.passes = model, passes or Passes()
        self._end, self._context = end, context
        self._tokenizer, self._examples = _encoders(tokenizer, template)
        row = self._row("a", "a")
        self._ends = torch.tensor([end, int(row.tokens[row.learnt][-1])])  # a chat template may have an end of its own

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def context(self) -> int:
        """The most tokens that the model reads at once."""
        return self._context

    @property
    def layers(self) -> int:
        """How many layers attention can be asked of."""
        return depth(self.model)

    def encode(self, text: str) -> Encoded:
        """The tokens of a text, with the characters that each stands for; a special token spelled out is plain text."""
        found = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = torch.tensor(found.offsets, dtype=torch.int64).reshape(-1, 2)  # (T, 2)
        return Encoded(torch.tensor(found.ids, dtype=torch.int64), spans)

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (T,), without special tokens."""
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    def answer(self, instruction: str, answer: str) -> Example:
        """The row that a pool of the same template has of this example, cut to what the model reads and one more."""
        row = self._row(instruction, answer)
        return Example(row.tokens[: self._context + 1], row.learnt[: self._context + 1])

    def prompt(self, instruction: str) -> Tensor:
        """Tokens (T,) int64 after which an answer to `instruction` begins."""
        row = self._row(instruction, "a")  # parts are tokenized apart, so that the answer does not matter
        return row.tokens[: int(row.learnt.nonzero()[0])]

    def _row(self, instruction: str, answer: str) -> Example:
        turns = json.dumps([["user", instruction], ["assistant", answer]])
        ((tokens, learnt, _),) = self._examples.encode([turns])
        return Example(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(learnt > 0))

    # ---- the model -----------------------------------------------------------------------------------------------

    def next_log_probabilities(self, prompts: Sequence[Tensor], choices: Tensor) -> Tensor:
        """(n, c) float64: log probability of each token of `choices` (c,) right after each prompt (T_i,).

        Raises ConfigError for a prompt longer than the context.
        """
        lengths = self._lengths(prompts)
        if not len(prompts):
            return torch.empty(0, len(choices), dtype=torch.float64)

        def work(places: Tensor) -> Tensor:
            reader = self._reader([prompts[i] for i in places.tolist()])
            logits = reader.read(self.passes.device, cache=False).double()  # (b, V)
            return logits.log_softmax(-1)[:, choices.to(logits.device)].cpu()  # (b, c)

        with self._running():
            found = self.passes.spread(lengths, work)
        self.passes.pay(lengths)
        return found

    def generate(
        self,
        prompts: Sequence[Tensor],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """What the model writes after each prompt (T_i,), up to and without its end token; temperature 0 is greedy.

        It ends after `max_new_tokens` or where the context ends. Raises ConfigError for a prompt longer than that.
        """
        sampling = Sampling(temperature, top_k, top_p).checked()
        assert generator is not None or temperature == 0, "drawing needs a generator"
        lengths = self._lengths(prompts)
        if not len(prompts) or max_new_tokens < 1:
            return [torch.empty(0, dtype=torch.int64) for _ in prompts]
        seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator))
        limits = (self._context - lengths).clamp(max=max_new_tokens)  # (n,)

        def work(places: Tensor) -> Tensor:
            return written(
                self._reader([prompts[i] for i in places.tolist()]),
                limits[places],
                most=max_new_tokens,
                device=self.passes.device,
                ends=self._ends,
                sampling=sampling,
                generators=[seeding.generator(seed, i) for i in places.tolist()],
                everywhere=self.passes.everywhere,
            )

        with self._running():
            found = self.passes.spread(lengths + limits, work)  # (n, max_new_tokens)
        counts = (found != UNWRITTEN).sum(1)  # (n,)
        self.passes.pay(lengths, counts)
        return [row[:count] for row, count in zip(found, counts.tolist(), strict=True)]

    def attention(self, prompt: Tensor, *, layer: int) -> Tensor:
        """Attention (T, T) float32 of layer `layer`, from 0, summed over heads: row t says where token t looks.

        Every rank runs it alike. Raises ConfigError where the model has no such layer or gives no weights.
        """
        lengths = self._lengths([prompt])
        with self._running():
            found = attention_weights(self.model, prompt.to(self.passes.device), layer=layer)
        self.passes.pay(lengths)  # as if all layers had been run, as they are where ranks hold parts of the weights
        return found

    def _reader(self, prompts: list[Tensor]) -> Reader:
        return Reader(self.model, prompts, padding=self._end, context=self._context)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Evaluation mode, and everything else as it was afterwards."""
        passes = self.passes
        with passes.timed(), undisturbed(self.model), uncompiled(self.model), passes.precision():
            yield

    def _lengths(self, prompts: Sequence[Tensor]) -> Tensor:
        """(n,) int64 tokens of prompts. Raises ConfigError for one longer than the context."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
        assert bool((lengths > 0).all()), "a prompt without a token"
        if len(prompts) and int(lengths.max()) > self._context:
            raise ConfigError(
                "a prompt is longer than the model's context",
                got=f"{int(lengths.max())} tokens",
                allowed=f"{self._context}, model.config.max_position_embeddings",
                do="ask with shorter texts, or choose a model with a longer context",
            )
        return lengths


@lru_cache(maxsize=4)
def _encoders(folder: Path, template: str) -> tuple[Any, ExampleEncoder]:
    """A tokenizer that takes special tokens in a text for text, and the encoder of the pool's examples."""
    plain = load(folder)
    plain.backend_tokenizer.encode_special_tokens = True
    plain.backend_tokenizer.no_truncation()
    plain.backend_tokenizer.no_padding()
    # The sizes of tokens are counted for pools alone, and rows are cut by who asks for them.
    return plain, ExampleEncoder(load(folder), np.empty(0, np.int32), template=template, seq_len=0)


def make_language(sweeper: Sweeper, pool: Pool) -> ModelLanguage:
    """The language of the model of `sweeper`, by the template of the pool's examples; alpaca's for packed text."""
    trainer, module = sweeper.trainer, sweeper.module
    passes = Passes(
        device=module.device,
        tokens=sweeper.batch_size * pool.seq_len,
        rank=trainer.global_rank,
        world=trainer.world_size,
        gathered=partial(gathered, trainer),
        precision=trainer.precision_plugin.forward_context,
        timed=partial(sweeper.clock.timed, sweeper.purpose),
        charge=lambda tokens, flops: sweeper.clock.add(sweeper.purpose, tokens=tokens, flops=flops),
        flops=module.forward_flops,
    )
    return ModelLanguage(
        module.model,
        tokenizer=pool.tokenizer_path,
        template=pool.manifest.get("template", "alpaca"),
        end=pool.eos_id,
        context=int(getattr(module.model.config, "max_position_embeddings", pool.seq_len)),
        passes=passes,
    )
