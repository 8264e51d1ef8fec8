"""A virtual step of gradient descent, and what it tells of the rows that it is made of: settings and results, no code.

Letters: n rows of the step, M rows of the target set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from regimen.core.checks import check_one_of, check_positive
from regimen.core.errors import ConfigError
from regimen.core.measuring import BACKWARD, GRADIENT

# By estimator, what its products cost in forward passes over a row.
PASSES = {"fd": 2.0, "exact": GRADIENT + BACKWARD, "jvp": 3.0, "ghost": GRADIENT}
BACKWARDS = {"fd": 0.0, "exact": 1.0, "jvp": 0.0, "ghost": 1.0}  # among them, for gradients of parameters
ESTIMATORS = tuple(PASSES)


@dataclass(frozen=True, kw_only=True)
class Lookahead:
    """How inner products of rows' gradients with a target's gradient after a virtual step are taken.

    The step is theta' = theta - lr P sum_i c_i grad l_i(theta), l_i the mean token loss of row i; the products are
    those of grad l_i(theta) with P grad L(theta'), L the mean of the target rows' losses.
    lr: of the step; 0 takes the target's gradient where the model is, and no step.
    estimator: `fd` two forward passes, at either side of theta along the direction, whose length is `c`; `exact` a
        second backward pass through the first; `jvp` one pass in forward mode; `ghost` layer by layer from what each
        read and the gradients of what it gave.
    c: 1e-2 suits float32: smaller ones drown in rounding, larger ones in curvature.
    parameters: a regular expression found in the names of parameters, null for all that are trained.
    adam: P is 1 / (sqrt(v) + eps), Adam's second moments as they are, without correction for their bias, taken as
        constant; otherwise P is 1.
    """

    whole_parameters: ClassVar[bool] = True  # on every rank
    lr: float = 0.1
    estimator: Literal["fd", "exact", "jvp", "ghost"] = "fd"
    c: float = 1e-2
    parameters: str | None = None
    adam: bool = False

    def __post_init__(self) -> None:
        check_one_of("estimator", self.estimator, ESTIMATORS)
        if not 0 <= self.lr < math.inf:
            raise ConfigError("lr is the size of a virtual step", got=f"lr={self.lr}", allowed="0 (no step) or more")
        check_positive(self, "c")


class Looked(NamedTuple):
    """What a virtual step told. losses (n,): mean token losses at theta, NaN where no step was made.

    products: (n,) inner products. target_loss: the mean of the target rows' losses at theta'. All float64.
    """

    losses: Tensor
    products: Tensor
    target_loss: float


class Slope(NamedTuple):
    """Of a weighted sum of rows' mean losses plus the target's, at parameters `at`. losses (n,): of the rows there.

    target_loss: the mean of the target rows' losses. gradient, at: by name of the parameter, on the model's device.
    """

    losses: Tensor
    target_loss: float
    gradient: dict[str, Tensor]
    at: dict[str, Tensor]
