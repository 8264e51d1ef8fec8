"""Entropy mixtures (BiMix, arXiv 2405.14908): the paper's tables, closed forms, counting by brute force, real text."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.seeding import generator
from regimen.mixing.entropy import EntropyMixture
from regimen.signals.entropy import KINDS, Entropy, conditional, joint, shannon, text_vectors, von_neumann
from tests.reference.observations import index_of, seeing
from tests.support.runs import lines, run, write_corpus

COUNTED = ("shannon", "joint", "conditional")
ROWS = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=8)


def rows_of(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.int64) for row in rows]


class Corpus:
    """Domains of rows of token ids, which read as words."""

    def __init__(self, *domains: list[list[int]], words: str = "w{}") -> None:
        self.domains, self.words = domains, words
        self.index = index_of([len(d) for d in domains])

    def tokens(self, domain: int, limit: int) -> list[torch.Tensor]:
        return rows_of(*self.domains[domain])

    def texts(self, domain: int, limit: int) -> list[str]:
        return [" ".join(self.words.format(t) for t in row) for row in self.domains[domain]][:limit]


def measured(corpus: Corpus, **fields) -> list[float]:
    return Entropy(**fields).survey(corpus, torch.empty(0), generator(0)).tolist()


def mixture(entropies: list[float], index: PoolIndex, by: Entropy | None = None) -> torch.Tensor:
    mixer = EntropyMixture(by=by or Entropy())
    seen = seeing(entropies, ids=[], index=index, by=mixer.by)
    return mixer.checked(mixer.decide(mixer.init(index), seen), seen)


# ---- the paper ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["pile_22", "slimpajama_7"])
def test_the_published_mixtures_are_softmaxes_of_entropies_in_one_unit(table):
    """JE = H(first) + CE with H(first) near SE, so softmax(JE) is softmax(SE) times softmax(CE), normalised."""
    by_kind = {}
    for kind in COUNTED:
        content = yaml.safe_load((conf_dir() / "mixture" / f"bimix_{table}_{kind}.yaml").read_text())
        by_kind[kind] = content["weights"]
    names = sorted(by_kind["joint"])
    se, ce, je = (np.array([by_kind[kind][name] for name in names]) for kind in ("shannon", "conditional", "joint"))
    index = PoolIndex(domains=tuple(names), offsets=torch.arange(len(names) + 1), target_tokens=1)
    shares = mixture((np.log(se) + np.log(ce)).tolist(), index)
    assert np.abs(shares.numpy() - je).max() < 1e-4  # what four decimals are off by


def test_golden_of_five_tokens():
    rows = rows_of([0, 1, 0, 1, 2])
    assert shannon(rows) == pytest.approx(1.0549202, abs=1e-7)
    assert joint(rows) == pytest.approx(1.0397208, abs=1e-7)
    assert conditional(rows) == pytest.approx(0.3465736, abs=1e-7)
    assert joint(rows) - conditional(rows) == pytest.approx(0.6931472, abs=1e-7)


# ---- counting ----------------------------------------------------------------------------------------------------


def plug_in(counts: Counter, *, miller_madow: bool = False) -> float:
    total = sum(counts.values())
    value = -sum(c / total * math.log(c / total) for c in counts.values())
    return value + (len(counts) - 1) / (2 * total) if miller_madow and counts else value


def brute_force(rows: list[list[int]]) -> tuple[float, float, float, float]:
    """Shannon, joint, conditional by its own formula, and the entropy of first tokens."""
    pairs = Counter(pair for row in rows for pair in itertools.pairwise(row))
    first: Counter = Counter()
    for (x, _), count in pairs.items():
        first[x] += count
    total = sum(pairs.values())
    given = -sum(c / total * math.log(c / first[x]) for (x, _), c in pairs.items())
    return plug_in(Counter(t for row in rows for t in row)), plug_in(pairs), given, plug_in(first)


@given(ROWS)
def test_counts_by_brute_force_and_the_identity(rows):
    tensors = rows_of(*rows)
    se, je, ce, first = brute_force(rows)
    assert shannon(tensors) == pytest.approx(se, abs=1e-12)
    assert joint(tensors) == pytest.approx(je, abs=1e-12)
    assert conditional(tensors) == pytest.approx(ce, abs=1e-12)
    assert joint(tensors) == pytest.approx(ce + first, abs=1e-12)


def test_bigrams_do_not_cross_rows():
    assert joint(rows_of([0, 1], [2, 3])) == pytest.approx(math.log(2))
    assert joint(rows_of([0, 1, 2, 3])) == pytest.approx(math.log(3))
    assert joint(rows_of([0], [1], [2])) == 0


@given(ROWS, st.permutations(range(6)))
def test_names_of_tokens_and_order_of_rows_do_not_matter(rows, names):
    renamed = rows_of(*([names[t] * 40_000 for t in row] for row in reversed(rows)))  # keys beyond 32 bits
    for measure in (joint, conditional):
        assert measure(renamed) == pytest.approx(measure(rows_of(*rows)), abs=1e-12)


def test_closed_forms():
    assert shannon(rows_of([3, 3, 3])) == 0
    pairs = rows_of(*torch.cartesian_prod(torch.arange(7), torch.arange(7)).tolist())
    assert shannon(pairs) == pytest.approx(math.log(7))
    assert joint(pairs) == pytest.approx(math.log(49))
    assert conditional(pairs) == pytest.approx(math.log(7))
    assert conditional(rows_of([0, 1, 2, 3] * 50)) == 0


@given(ROWS)
def test_miller_madow_adds_half_a_count_per_further_kind(rows):
    tensors = rows_of(*rows)
    pairs = Counter(pair for row in rows for pair in itertools.pairwise(row))
    first = Counter({x: sum(c for (y, _), c in pairs.items() if y == x) for x, _ in pairs})
    tokens = Counter(t for row in rows for t in row)
    assert shannon(tensors, miller_madow=True) == pytest.approx(plug_in(tokens, miller_madow=True), abs=1e-12)
    corrected = plug_in(pairs, miller_madow=True)
    assert joint(tensors, miller_madow=True) == pytest.approx(corrected, abs=1e-12)
    expected = corrected - plug_in(first, miller_madow=True)
    assert conditional(tensors, miller_madow=True) == pytest.approx(expected, abs=1e-12)


def test_miller_madow_is_nearer_to_the_truth_on_small_samples():
    draws = torch.randint(50, (200, 300), generator=generator(0))
    plain = np.mean([shannon([row]) for row in draws])
    corrected = np.mean([shannon([row], miller_madow=True) for row in draws])
    assert plain < corrected < math.log(50) + 0.01
    assert abs(corrected - math.log(50)) < 0.1 * abs(plain - math.log(50))


# ---- von Neumann -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
@pytest.mark.parametrize(("n", "d"), [(5, 300), (300, 300), (40, 7)])
def test_von_neumann_of_identical_and_of_orthonormal_vectors(kernel, n, d):
    rng = np.random.default_rng(0)
    assert von_neumann(np.tile(rng.standard_normal(d), (n, 1)), kernel=kernel) == pytest.approx(0, abs=1e-9)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0][: min(n, d)]
    assert von_neumann(basis, kernel=kernel) == pytest.approx(math.log(min(n, d)), abs=1e-9)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_von_neumann_by_the_kernel_matrix_of_the_samples(n, d, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, d))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n)
    expected = -sum(v * math.log(v) for v in values if v > 1e-15)
    assert von_neumann(vectors) == pytest.approx(expected, abs=1e-9)
    assert von_neumann(vectors * np.arange(1, n + 1)[:, None]) == pytest.approx(expected, abs=1e-9)
    assert 0 <= von_neumann(vectors) <= math.log(min(n, d)) + 1e-9


def test_the_linear_kernel_counts_long_vectors_more():
    vectors = np.diag([3.0, 1.0])
    assert von_neumann(vectors) == pytest.approx(math.log(2))
    assert von_neumann(vectors, kernel="linear") == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))


def test_vectors_of_zero_have_no_direction():
    assert von_neumann(np.zeros((4, 3))) == 0
    assert von_neumann(np.vstack([np.eye(3), np.zeros((9, 3))])) == pytest.approx(math.log(3))


def test_hashed_vectors_are_alike_where_the_spelling_is():
    (found,) = text_vectors([["regularisation", "regularization", "cat sat", "sat cat", "", "dog"]], file=None)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)
    cosine = unit @ unit.T
    assert cosine[0, 1] > 0.5
    assert cosine[2, 3] == pytest.approx(1)
    assert np.abs(cosine[[0, 0, 1, 2], [2, 5, 5, 5]]).max() < 0.25
    assert not found[4].any()


def test_text_vectors_do_not_depend_on_other_texts():
    alone = text_vectors([["the cat"]], file=None)[0]
    among = text_vectors([["a dog", "the cat"], ["the mat"]], file=None)[0]
    assert np.allclose(alone[0], among[1])


def test_word_vectors_from_a_file(tmp_path):
    file = tmp_path / "words.vec"
    file.write_text("4 2\ncat 3 0\ndog 0 2\n, -1 0\nCat 0 5\n")
    (found,) = text_vectors([["cat dog", "CAT", "Cat", "cat, bird", "bird"]], file=str(file))
    expected = [[0.5, 0.5], [1, 0], [0, 1], [0, 0], [0, 0]]  # unit words, lower case as a second try, unknown: left out
    assert found.tolist() == pytest.approx(np.array(expected))
    headless = tmp_path / "headless.vec"
    headless.write_text("cat 3 0\ndog 0 2\n")
    assert text_vectors([["dog"]], file=str(headless))[0].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 3\ncat 1 2 3\ndog 1 2\n", "line 3"),
        ("cat 1 two\n", "line 1"),
        ("cat 1 nan\n", "finite"),
        ("bird 1 2\n", "no word of the pool"),
        ("", "no word of the pool"),
    ],
)
def test_files_of_vectors_that_cannot_be_used(tmp_path, content, words):
    file = tmp_path / "words.vec"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        text_vectors([["cat"]], file=str(file))


# ---- the signal and the mixture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_domains_without_rows_or_with_one_token(kind):
    corpus = Corpus([[0, 1, 2, 1], [2, 1, 0, 3]], [], [[5]])
    found = measured(corpus, kind=kind)
    assert found[0] > 0
    assert found[1:] == [0, 0]
    shares = mixture(found, corpus.index)
    assert shares[1] == 0
    assert shares.tolist() == pytest.approx([math.exp(found[0]) / (math.exp(found[0]) + 1), 0, 1 - float(shares[0])])


@pytest.mark.parametrize("kind", KINDS)
def test_domains_do_not_influence_each_other(kind):
    parts = [[[0, 1, 2, 1], [2, 1, 0, 3]], [[4, 4, 4, 4], [4, 5, 4, 4]], [[6, 7, 8, 9], [9, 3, 7, 1], [1, 2, 3, 4]]]
    found = measured(Corpus(*parts), kind=kind)
    assert measured(Corpus(*parts[::-1]), kind=kind)[::-1] == pytest.approx(found)
    shares = mixture(found, Corpus(*parts).index)
    assert shares.tolist() == pytest.approx((np.exp(found) / np.exp(found).sum()).tolist())
    assert torch.allclose(mixture(found[::-1], Corpus(*parts[::-1]).index).flip(0), shares)


@pytest.mark.parametrize("kind", COUNTED)
def test_every_domain_is_cut_to_exactly_the_budget(kind):
    rows = [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]]
    measure = {"shannon": shannon, "joint": joint, "conditional": conditional}[kind]
    assert measured(Corpus(rows, rows[:1]), kind=kind, max_tokens=8) == pytest.approx(
        [measure(rows_of(rows[0], rows[1][:2])), measure(rows_of(rows[0]))]
    )


def test_equal_budgets_make_a_small_and_a_large_sample_of_one_text_alike():
    def sample(rows: int, seed: int) -> list[list[int]]:
        weights = 1 / torch.arange(1, 301).double()
        return (
            torch.multinomial(weights, rows * 100, replacement=True, generator=generator(seed)).view(-1, 100).tolist()
        )

    corpus = Corpus(sample(20, 0), sample(2000, 1))
    small, large = measured(corpus, kind="joint", max_tokens=2000)
    assert small == pytest.approx(large, abs=0.05)
    small, large = measured(corpus, kind="joint", max_tokens=200_000)
    assert large - small > 1


def test_the_user_learns_which_domains_have_less_than_the_budget():
    index = index_of([10, 2, 0, 10], 99)  # 100 tokens a row
    for by, words in ((Entropy(max_tokens=500), "=200"), (Entropy(kind="von_neumann", samples=5), "=2")):
        mixer = EntropyMixture(by=by)
        note = mixer.notes(mixer.init(index), torch.ones(4) / 4, seeing(index=index, by=by))
        assert len(note) == 1
        assert "but b have less" in note[0]
        assert note[0].count(f"by.{by.budget[0]}{words} ") == 1
    mixer = EntropyMixture(by=Entropy(max_tokens=200))
    assert mixer.notes(mixer.init(index), torch.ones(4) / 4, seeing(index=index, by=mixer.by)) == []


def test_needs_the_entropy_and_costs_no_forward_pass():
    by = Entropy()
    assert EntropyMixture(by=by).needs() == (by,)
    assert by.rows(batch=8, validation=8, domains=3) == 0
    assert Entropy() == by and hash(Entropy()) == hash(by)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "renyi"}, "shannon, joint, conditional, von_neumann"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"samples": 1}, "samples"),
        ({"kernel": "rbf"}, "cosine, linear"),
        ({"kind": "von_neumann", "miller_madow": True}, "Miller-Madow"),
        ({"vectors": "/nowhere/words.vec"}, "names no file"),
    ],
)
def test_refused_settings(fields, words):
    with pytest.raises(ConfigError, match=words):
        Entropy(**fields)


# ---- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_records_the_mixture_of_its_pool(kind, corpus, home, tmp_path):
    """The shares are those of the text as it is packed, counted here from the prepared pool."""
    from regimen.data.pool import Pool

    method = f"entropy_{kind}"
    folder = run(corpus, home, f"method={method}", "budget.steps=2", f"run_dir={tmp_path}/run")
    (line,) = [row for row in lines(folder / "record.jsonl") if row.get("strategy") == method and "mixture" in row]
    shares = line["mixture"]
    assert sum(shares.values()) == pytest.approx(1)
    again = run(corpus, home, f"method={method}", "budget.steps=2", "seed=1", f"run_dir={tmp_path}/again")
    (other,) = [row for row in lines(again / "record.jsonl") if row.get("strategy") == method and "mixture" in row]
    assert other["mixture"] == shares
    if kind == "von_neumann":
        assert min(shares.values()) > 0
        return
    pool = Pool.open(next(path.parent for path in (home / "pools").rglob("manifest.json")))
    column = ("shannon", "joint", "conditional").index(kind)
    found = []
    for k in range(len(pool.domains)):
        rows = pool.train.read(pool.train.index.ids(k))
        cut = [row[:n] for row, n in zip(rows.tokens.tolist(), rows.lengths.tolist(), strict=True)]
        found.append(brute_force(cut)[column])
    expected = np.exp(found) / np.exp(found).sum()
    assert [shares[d] for d in pool.domains] == pytest.approx(expected.tolist())


def test_entropies_of_real_domains(shared):
    """Bytes of real text: dialogue from templates says less with a byte than books; the three kinds add up."""
    folder = shared / "corpora" / "pretrain"
    if not folder.is_dir():
        pytest.skip("the corpora are not in ../shared")
    found = {}
    for domain in ("books", "dialogue", "law"):
        with gzip.open(folder / f"{domain}.validation.jsonl.gz", "rt", encoding="utf-8") as file:
            text = "\n".join(json.loads(line)["text"] for line in file)[:90_000]
        rows = [torch.tensor(list(text.encode()[i : i + 256])) for i in range(0, 90_000 - 255, 256)]
        found[domain] = [measure(rows) for measure in (shannon, joint, conditional)]
        assert found[domain][2] < found[domain][0] < found[domain][1]
        assert found[domain][1] == pytest.approx(found[domain][0] + found[domain][2], abs=0.01)
    assert found["dialogue"][2] < found["books"][2]
