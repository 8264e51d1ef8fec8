"""Near-duplicate removal: signatures against Jaccard similarities, clusters against brute force, planted copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.deduplicate import Deduplicate, clusters
from regimen.signals.minhash import MinHash
from tests.reference.texts import Texts, real


def kept(texts: list[str], *, signal: MinHash | None = None, **settings) -> list[int]:
    by = signal or MinHash()
    selector, seen = Deduplicate(by=by, **settings), Texts(texts).seen(by)
    return selector.checked(selector.decide(None, seen), seen).ids.tolist()


def test_agreement_estimates_the_jaccard_similarity():
    draw = np.random.default_rng(0)
    signal = MinHash(permutations=512, shingle=1)
    for common, other in ((50, 50), (80, 20), (10, 190)):
        words = [f"w{i}" for i in draw.permutation(1000)[: common + 2 * other]]
        texts = [" ".join(words[: common + other]), " ".join(words[:common] + words[common + other :])]
        first, second = signal.measure(Texts(texts), torch.arange(2))
        expected = common / (common + 2 * other)
        found = float((first == second).double().mean())
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 512))


def test_signatures_depend_on_words_alone():
    meter = Texts(["A b  c d e f", "a B c\nd e f", "a b c d e g", "a b", "", "a c"])
    found = MinHash().measure(meter, torch.arange(6))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[3], found[5]), "short rows are one shingle"
    assert bool((found[4] == 2**32).all()) and float(found[:4].max()) < 2**32
    assert torch.equal(MinHash().measure(meter, torch.tensor([2])), found[2:3])


@given(st.data())
def test_clusters_equal_brute_force(data):
    n, bands = data.draw(st.integers(1, 14)), data.draw(st.sampled_from([1, 2, 4, 8]))
    threshold = data.draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    rows = np.array([[data.draw(st.integers(0, 2)) for _ in range(8)] for _ in range(n)], np.int64)

    def linked(i: int, j: int) -> bool:
        same = (rows[i] == rows[j]).reshape(bands, -1)
        return bool(same.all(1).any() and same.mean() >= threshold)

    lowest = list(range(n))
    for _ in range(n):  # spread the lowest label until nothing changes
        lowest = [min(lowest[j] for j in range(n) if linked(i, j)) for i in range(n)]
    assert clusters(rows, threshold=threshold, bands=bands).tolist() == lowest


def test_the_lowest_id_of_a_cluster_is_kept():
    assert kept(["x y z", "p q", "x y z", "p q", "r"]) == [0, 1, 4]
    assert kept(["same"] * 5) == [0]
    assert kept(["", "a", ""]) == [0, 1]


def test_one_link_to_the_next_is_enough():
    """Each row shares 9 of 11 words with the next, the first and the last 7 of 13: one cluster at .7."""
    words = [f"w{i}" for i in range(16)]
    texts = [" ".join(words[i : i + 10]) for i in range(4)]
    signal = MinHash(permutations=1024, shingle=1)
    assert kept(texts, signal=signal, threshold=0.7, bands=256) == [0]
    assert kept([texts[0], texts[3]], signal=signal, threshold=0.7, bands=256) == [0, 1]


def test_links_are_followed_inside_a_band():
    """The second and the third row agree in 6 of 8, the first and the third in 5, in bands that all three share."""
    rows = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 2, 1, 0, 0, 0]], np.int64)
    assert clusters(rows, threshold=0.75, bands=4).tolist() == [0, 0, 0]
    assert clusters(rows[[0, 2]], threshold=0.75, bands=4).tolist() == [0, 1]


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.8])
def test_bands_find_pairs_as_often_as_the_formula_says(similarity):
    draw, rows, bands, pairs = np.random.default_rng(1), 4, 8, 2000
    found = 0
    for _ in range(pairs):
        first = draw.integers(0, 2**31, rows * bands)
        second = np.where(draw.random(rows * bands) < similarity, first, draw.integers(0, 2**31, rows * bands))
        found += clusters(np.stack([first, second]), threshold=1e-9, bands=bands).tolist() == [0, 0]
    expected = 1 - (1 - similarity**rows) ** bands
    assert found / pairs == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / pairs))


def test_the_order_of_the_rows_does_not_matter():
    texts = ["a b c", "d e f", "a b c", "g", "d e f", "g"]
    signal = MinHash()
    meter = Texts(texts)
    mixed = torch.tensor([5, 2, 4, 1, 3, 0])
    assert Deduplicate(by=signal).decide(None, meter.seen(signal, ids=mixed)).tolist() == [0, 1, 3]


def test_planted_copies_in_real_text_are_found(shared):
    """Exact copies, copies with a sentence more, and with every 60th word changed; other rows stay."""
    texts = [t for domain in ("books", "law", "web", "wikipedia") for t in real(shared, domain, count=150)]
    texts = [texts[i] for i in kept(texts)]  # the corpora have near-duplicates of their own
    n = len(texts)
    assert n > 300
    exact = [texts[i].upper() for i in range(60)]
    longer = [texts[i] + " And this was added later." for i in range(60, 120)]
    changed = [
        " ".join("other" if k % 60 == 59 else word for k, word in enumerate(texts[i].split())) for i in range(120, 180)
    ]
    found = set(kept(texts + exact + longer + changed))
    assert set(range(n)) <= found, "nothing but copies is dropped"
    left = [i for i in range(n, n + 180) if i in found]
    assert not [i for i in left if i < n + 120]
    assert len([i for i in left if i >= n + 120]) <= 12  # 5 of 60 shingles change: J is about .85, estimated within .03


def test_refused():
    for settings, words in (({"threshold": 0.0}, "threshold"), ({"bands": 3}, "divisor"), ({"bands": 0}, "divisor")):
        with pytest.raises(ConfigError, match=words):
            Deduplicate(by=MinHash(), **settings)
    for settings in ({"permutations": 0}, {"shingle": 0}):
        with pytest.raises(ConfigError):
            MinHash(**settings)
