"""Write docs/sharding.md: what works where the model is spread over processes. `make docs`.

The table of signals is made of what `regimen.training.capabilities` says of those that
tests/integration/test_sharded.py measures under every strategy.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.every_signal import LOOP, OF_DOMAINS, SIGNALS  # noqa: E402

from regimen.training.capabilities import SHARDED, supports  # noqa: E402

STRATEGIES = ("ddp", *SHARDED)
TEXT = """\
# A model over several processes

`trainer=ddp` gives every process the whole model. `trainer=fsdp` (FSDP2) spreads parameters, gradients and Adam's
moments over all of them; `trainer=deepspeed_zero1`, `_zero2` and `_zero3` spread the moments, then the gradients, then
the parameters too, and `_zero2_offload` and `_zero3_offload` keep what is spread in the CPU's memory.

```
regimen train trainer=fsdp trainer.devices=8 trainer.precision=bf16-mixed model.gradient_checkpointing=true
regimen train trainer=deepspeed_zero3 trainer.devices=2 trainer.accelerator=cpu   # over gloo, as the tests do
```

The same global batch gives the same rows, decisions and losses (to rounding) under each of them and on any number of
processes. A run is stopped and goes on bit for bit under the strategy and number of processes that it had. It may go on
otherwise too:

| saved under | goes on under |
|---|---|
| one process, DDP, FSDP | these, on any number of processes |
| ZeRO | the same stage (1 and 2 are alike) on any number of processes, one process, DDP, FSDP |

From anything but ZeRO to ZeRO is refused before a model is built. `regimen export` and methods that measure under the
model of a finished run read all of these checkpoints.

## Signals of the model in training

{table}

"-" is refused before a model is built, with the alternative. Tests compare every other cell with one process, to 1e-5
of the largest value.

## Limits

* `trainer.precision` is `32-true` or `bf16-mixed`: under DDP and FSDP autocast around float32 weights; under ZeRO
  DeepSpeed's own, whose layers are bfloat16 throughout, so that its losses differ from the others' in the fourth digit.
* `model.compile=true` is refused with a sharded model.
* Every process builds the model in its CPU's memory before it is spread; finished models that a method compares with
  are whole on every process; so are Adam's moments while a sketch with `adam` other than `none` is made.
* `regimen check` says what a rank holds. Under `bf16-mixed` FSDP2 keeps bfloat16 copies of all linear layers on every
  rank until the forward pass ends.
* On CPUs offloading saves nothing: it is there to be tested.
"""


def table() -> str:
    """A row per signal, a column per strategy."""
    lines = ["| signal | " + " | ".join(STRATEGIES) + " |", "|---" * (len(STRATEGIES) + 1) + "|"]
    for name, signal in {**SIGNALS, **OF_DOMAINS, **LOOP}.items():
        cells = ("yes" if supports(strategy, signal) else "-" for strategy in STRATEGIES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return TEXT.format(table=table())


if __name__ == "__main__":
    (ROOT / "docs" / "sharding.md").write_text(page())
