"""Sketches of per-row gradients against plain backward passes, and that nobody notices them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.training.cross_entropy import IGNORE
from regimen.training.sketching import Moments, Sketcher, row_losses
from tests.support.gradients import MODELS, Rows, adapted, by_backward, gpt2, llama, qwen2, rows, tied

WHOLE = Sketch(kind="whole")


def sketched(model: nn.Module, sketch: Sketch, given: Rows | None = None, *, moments: Moments | None = None) -> Tensor:
    given = rows() if given is None else given
    return Sketcher(model, sketch, moments=moments, chunk=8)(given.inputs, given.targets, None)


def near(found: Tensor, expected: Tensor, *, within: float = 1e-5) -> bool:
    """Whether every row is within a part of its norm."""
    return bool(((found - expected).norm(dim=1) <= within * expected.norm(dim=1)).all())


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("backend", ["hooks", "loop"])
@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_has_the_gradient_of_a_backward_pass(make: Callable[[], nn.Module], backend: str) -> None:
    """By parameter, for a small one must not hide behind a large one."""
    model = make()
    expected = by_backward(model, rows())
    found = sketched(model, Sketch(kind="whole", backend=backend))
    assert found.dtype == torch.float32 and found.shape == expected.shape
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for _, p in trained]
    norm = expected.norm(dim=1)
    for (name, _), mine, theirs in zip(trained, found.split(sizes, 1), expected.split(sizes, 1), strict=True):
        error = (mine - theirs).norm(dim=1)
        assert bool((error <= 1e-5 * theirs.norm(dim=1) + 1e-7 * norm).all()), name
    kinds = {type(m).__name__ for m in model.modules() if m._parameters}
    assert kinds & {"Linear", "Conv1D"} and kinds & {"Qwen2RMSNorm", "LlamaRMSNorm", "LayerNorm"}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("kind", ["fold", "factored"])
def test_hooks_and_the_loop_give_the_same_sketch(make: Callable[[], nn.Module], kind: str) -> None:
    model = make()
    hooks, loop = (sketched(model, Sketch(kind=kind, dimensions=96, rank=4, backend=b)) for b in ("hooks", "loop"))
    assert near(hooks, loop)
    sketcher = Sketcher(model, Sketch(kind=kind, dimensions=96, rank=4), chunk=8)
    assert sketcher.dimensions == hooks.shape[1] == (96 if kind == "fold" else len(sketcher.chosen) * 16)


@pytest.mark.parametrize("parameters", ["q_proj", "norm", r"layers\.1\.", "embed_tokens", "bias", "lm_head"])
def test_a_pattern_chooses_parameters_and_frozen_ones_are_left_out(parameters: str) -> None:
    model = qwen2()
    model.model.layers[0].self_attn.requires_grad_(False)
    model.model.norm.requires_grad_(False)
    expected = by_backward(model, rows(), parameters=parameters)
    assert near(sketched(model, Sketch(kind="whole", parameters=parameters)), expected)
    with pytest.raises(ConfigError, match="no parameter"):
        sketched(model, Sketch(kind="whole", parameters=r"layers\.0\.self_attn"))


def test_a_tied_parameter_gets_both_of_its_gradients_once() -> None:
    model = tied()
    expected = by_backward(model, rows(), parameters="embed_tokens")
    for parameters in ("embed_tokens", "lm_head", "embed_tokens|lm_head"):
        assert near(sketched(model, Sketch(kind="whole", parameters=parameters)), expected)
    head = copy.deepcopy(model)
    head.lm_head.weight = nn.Parameter(head.lm_head.weight.detach().clone())
    alone = sketched(head, Sketch(kind="whole", parameters="lm_head"))
    assert float(cosines(alone, expected).max()) < 0.999, "the embedding's part matters"


def test_a_module_that_is_called_twice_adds_up() -> None:
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    assert near(sketched(model, WHOLE), by_backward(model, rows()))


def test_the_sum_is_the_mean_times_the_targets() -> None:
    given = rows()
    count = (given.targets != IGNORE).sum(1, keepdim=True)
    total = sketched(llama(), Sketch(kind="whole", reduction="sum"))
    assert near(total, by_backward(llama(), given, reduction="sum"))
    torch.testing.assert_close(total, sketched(llama(), WHOLE) * count)


@pytest.mark.parametrize("kind", ["fold", "whole", "factored"])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_a_row_does_not_depend_on_its_batch_or_padding(kind: str, backend: str) -> None:
    """And one without targets has a sketch of zeros, among others and alone."""
    model, sketch = tied(), Sketch(kind=kind, dimensions=64, rank=4, backend=backend)
    given = rows(lengths=(11, 7, 0, 4))
    together = sketched(model, sketch, given)
    for row, length in enumerate((11, 7, 0, 4)):
        end = max(length, 1)
        alone = sketched(model, sketch, Rows(given.inputs[row : row + 1, :end], given.targets[row : row + 1, :end]))
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-4)
        assert (together[row].abs().max() == 0) == (length == 0)
    wide = Rows(*(torch.nn.functional.pad(x, (0, 4), value=v) for x, v in zip(given, (5, IGNORE), strict=True)))
    torch.testing.assert_close(sketched(model, sketch, wide), together, atol=1e-6, rtol=1e-4)
    for adam in ("none",) if kind == "factored" else ("none", "inside", "outside"):
        moments = young(model) if adam != "none" else None
        none = Rows(given.inputs[2:3], given.targets[2:3])
        made = sketched(model, Sketch(kind=kind, adam=adam, backend=backend), none, moments=moments)
        assert float(made.abs().max()) == 0


def young(model: nn.Module) -> Moments:
    """Moments that are all zero, as those of rows of an embedding that were never seen."""
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Moments(zeros, zeros, (0.9, 0.999), 1e-8)


@pytest.mark.parametrize("adam", ["inside", "outside"])
def test_parameters_without_moments_and_gradients_give_no_nan(adam: str) -> None:
    model = tied()
    for backend in ("hooks", "loop"):
        made = sketched(model, Sketch(adam=adam, backend=backend), moments=young(model))
        assert bool(made.isfinite().all()) and float(made.abs().max()) > 0


def test_positions_that_begin_anew_are_passed_on() -> None:
    given = rows(lengths=(10, 10))
    positions = torch.arange(5).repeat(2)[None].expand(2, -1)
    for make in (llama, gpt2):
        sketchers = [Sketcher(make(), Sketch(kind="whole", backend=b), chunk=8) for b in ("hooks", "loop")]
        hooks, loop = (s(given.inputs, given.targets, positions) for s in sketchers)
        assert near(hooks, loop) and not near(hooks, sketched(make(), WHOLE, given), within=0.01)


@pytest.mark.parametrize("make", [qwen2, tied, adapted])
def test_gradient_checkpointing_changes_nothing(make: Callable[[], nn.Module]) -> None:
    """The model is in training mode, for transformers recomputes in no other; it has no dropout."""
    plain, recomputing = make(), make()
    for module in recomputing.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    enable = getattr(recomputing, "activation_checkpointing_enable", None) or recomputing.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    recomputing.train()
    calls = []
    recomputing.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    for sketch, moments in ((WHOLE, None), (Sketch(adam="outside"), young(plain))):
        calls.clear()
        found = sketched(recomputing, sketch, moments=moments)
        assert len(calls) == 2, "it was recomputed"
        torch.testing.assert_close(found, sketched(plain, sketch, moments=moments), atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_model_is_read_all_the_same() -> None:
    model = llama()
    model.compile(backend="aot_eager")
    assert near(sketched(model, WHOLE), by_backward(llama(), rows()))


@pytest.mark.parametrize("make", MODELS)
def test_autocast_is_near_and_hooks_are_as_near_as_the_loop(make: Callable[[], nn.Module]) -> None:
    model = make()
    exact = sketched(model, Sketch(dimensions=256))
    with torch.autocast("cpu", torch.bfloat16):
        hooks, loop = (sketched(model, Sketch(dimensions=256, backend=backend)) for backend in ("hooks", "loop"))
    for found in (hooks, loop):
        assert found.dtype == torch.float32 and not torch.equal(found, exact)
        assert float(cosines(found, exact).min()) > 0.999
    assert float(cosines(hooks, loop).min()) > 0.9999


@pytest.mark.parametrize("make", [gpt2, tied, adapted])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_training_is_the_same_to_the_bit(make: Callable[[], nn.Module], backend: str) -> None:
    def trained(*, measure: bool) -> dict[str, Tensor]:
        model, given = make(), rows()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            for part in (slice(0, 2), slice(2, 4)):  # the second half of the batch finds the gradients of the first
                if measure:
                    before = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
                    sketched(model, Sketch(dimensions=64, backend=backend))
                    for name, p in model.named_parameters():
                        assert p.grad is None if before[name] is None else torch.equal(p.grad, before[name])
                losses = row_losses(model, given.inputs[part], given.targets[part], None, reduction="sum", chunk=8)
                losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    with_it, without = trained(measure=True), trained(measure=False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_is_left_even_after_an_error() -> None:
    model = llama()
    sketched(model, Sketch())
    assert hooks_of(model) == 0
    given = rows()
    with pytest.raises(IndexError):
        sketched(model, Sketch(), Rows(given.inputs + 1000, given.targets))
    assert hooks_of(model) == 0 and all(p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """A layer of a type of its own; one that reads rows as one long row; a matrix that is used without its layer."""

    def __init__(self, inner: nn.Module, *, flat: bool = False, bare: bool = False) -> None:
        super().__init__()
        self.inner, self.flat, self.bare = inner, flat, bare

    def forward(self, x: Tensor) -> Tensor:
        if self.flat:
            return self.inner(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return x @ self.inner.weight.T if self.bare else self.inner(x)


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((16,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (Gain(), r"model\.norm\.1.*Gain.*backend=loop"),
        (Odd(nn.Linear(16, 16), flat=True), r"model\.norm\.1\.inner reads \(44, 16\) for 4 rows.*backend=loop"),
        (Odd(nn.Linear(16, 16, bias=False), bare=True), r"without calling.*model\.norm\.1\.inner\.weight.*parameters="),
    ],
)
def test_what_no_tap_can_read_is_refused_and_the_loop_reads_it(odd: nn.Module, words: str) -> None:
    model = llama()
    model.model.norm = nn.Sequential(model.model.norm, odd)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        sketched(model, WHOLE)
    assert near(sketched(model, Sketch(kind="whole", backend="loop")), by_backward(model, rows()))
    others = "layers|embed|head"
    assert near(sketched(model, Sketch(kind="whole", parameters=others)), by_backward(model, rows(), parameters=others))


def test_untrained_adapters_are_refused() -> None:
    model = adapted(trained=False)
    for backend in ("hooks", "loop"):
        with pytest.raises(ConfigError, match=r"(?s)untrained.*warm-up.*when\.start"):
            Sketcher(model, Sketch(backend=backend), chunk=8)
    assert float(sketched(model, Sketch(parameters="lora_B")).abs().max()) > 0
    assert by_backward(model, rows(), parameters="lora_A").abs().max() == 0


def test_missing_moments_and_layers_are_told() -> None:
    model = llama()
    with pytest.raises(ConfigError, match=r"(?s)moments.*and 18 more.*adam=none"):
        Sketcher(model, Sketch(adam="outside"), chunk=8)
    some = young(model)
    first = {name: m for name, m in some.first.items() if "q_proj" not in name}
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj\.weight, model\.layers\.1"):
        Sketcher(model, Sketch(adam="inside"), moments=some._replace(first=first), chunk=8)
    with pytest.raises(ConfigError, match="linear layers"):
        Sketcher(model, Sketch(kind="factored", parameters="norm"), chunk=8)
