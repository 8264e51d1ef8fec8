"""Entropy of a domain's tokens or texts: how much there is to learn in it, without training a model.

Paper: Ge et al., BiMix, arXiv 2405.14908v4, the four entropy proxies. All are in nats.
Source of the word vectors' form: fastText, arXiv 1607.04606 (subwords); the text vector is its sentence vector.
Differs from the paper:
- The paper counts all tokens of a domain, in sequences of 1024. Here at most `max_tokens` are counted, in the rows of
  the pool, the end-of-text tokens between documents included. No bigram crosses the end of a row, as there.
- Counting few tokens underestimates an entropy, that of bigrams most: a budget that is the same for all domains makes
  the bias comparable, and Miller-Madow (an option, not in the paper) takes off its first order.
- The paper does not say how many samples the von Neumann entropy sees, nor its kernel: here `samples` rows, cosine.
- The von Neumann entropy needs fastText vectors, which are a download. With `vectors: null` a word's vector is the mean
  of seeded Gaussian vectors of its character n-grams. That keeps which texts share words and subwords, so repetitive
  domains still come out low; it does not know that synonyms are near, so it is a variety of spelling, not of meaning,
  and its values are not comparable with the paper's.
Letters: K domains, n rows, N tokens, bigrams or samples, m of them distinct, V vocabulary, W words, d dimensions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import DomainSignal, Surveyor

Array = NDArray[np.float64]
Lookup = Callable[[list[str]], Array]
KINDS = ("shannon", "joint", "conditional", "von_neumann")
KERNELS = ("cosine", "linear")
WORD = re.compile(r"\w+|[^\w\s]")
_DIMENSIONS, _BUCKETS, _SEED = 300, 2**16, 0  # of the hashed vectors; 300 as in the paper
_SHORTEST, _LONGEST = 3, 6  # characters of an n-gram: fastText's defaults


@dataclass(frozen=True, kw_only=True)
class Entropy(DomainSignal):
    """Entropy (K,) of each domain's training text, nats; 0 for a domain without rows, or too short to have a bigram.

    kind: `shannon` of single tokens; `joint` of two adjacent tokens; `conditional` of a token given the one before;
        `von_neumann` of the word vectors of texts.
    max_tokens: counted per domain, in rows spread evenly over it, cut to exactly this number; a domain that has fewer
        is counted whole, and its entropy is biased lower than that of the others. Not read by `von_neumann`.
    miller_madow: add the first-order correction (m - 1) / (2 N) to a counted entropy.
    samples: rows per domain whose texts `von_neumann` compares; a domain with fewer rows gives all.
    vectors: file of word vectors in fastText's text format (.vec), or null for hashed n-grams.
    kernel: `cosine`: every text counts alike; `linear`: texts with longer vectors count more.
    """

    of_text: ClassVar[bool] = True
    kind: Literal["shannon", "joint", "conditional", "von_neumann"] = "conditional"
    max_tokens: int = 10_000_000
    miller_madow: bool = False
    samples: int = 1000
    vectors: str | None = None
    kernel: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("unknown kind of entropy", got=f"kind={self.kind}", allowed=", ".join(KINDS))
        if self.max_tokens < 2:
            raise ConfigError("max_tokens is counted per domain", got=self.max_tokens, allowed="2 or more")
        if self.samples < 2:
            raise ConfigError("samples counts rows per domain", got=self.samples, allowed="2 or more")
        if self.kernel not in KERNELS:
            raise ConfigError("unknown kernel", got=f"kernel={self.kernel}", allowed=", ".join(KERNELS))
        if self.kind == "von_neumann" and self.miller_madow:
            raise ConfigError("Miller-Madow corrects counted entropies", got="kind=von_neumann", allowed=KINDS[:3])
        if self.vectors is not None and not Path(self.vectors).is_file():
            raise ConfigError("vectors names no file", got=self.vectors, do="give a .vec file, or null")

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Entropies (K,) float64 of all training rows; neither the batch nor the generator matters."""
        present = [k for k, size in enumerate(surveyor.index.sizes.tolist()) if size]
        found = torch.zeros(len(surveyor.index.domains), dtype=torch.float64)  # (K,)
        if self.kind == "von_neumann":
            texts = [surveyor.texts(k, self.samples)[: self.samples] for k in present]
            values = [von_neumann(vectors, kernel=self.kernel) for vectors in text_vectors(texts, file=self.vectors)]
        else:
            measure = {"shannon": shannon, "joint": joint, "conditional": conditional}[self.kind]
            values = [
                measure(_cut(surveyor.tokens(k, self.max_tokens), self.max_tokens), miller_madow=self.miller_madow)
                for k in present
            ]
        found[present] = torch.tensor(values, dtype=torch.float64)
        return found

    def available(self, index: PoolIndex) -> Tensor:
        """(K,) int64: the tokens of each domain, or its rows for `von_neumann`; what `budget` limits."""
        if self.kind == "von_neumann":
            return index.sizes
        return index.domain_tokens().long() + index.sizes  # a row has one token more than targets

    @property
    def budget(self) -> tuple[str, int]:
        """The field that says how much of each domain is read, and its value."""
        return ("samples", self.samples) if self.kind == "von_neumann" else ("max_tokens", self.max_tokens)


# ---- counted entropies ---------------------------------------------------------------------------------------------


def shannon(rows: Sequence[Tensor], *, miller_madow: bool = False) -> float:
    """Entropy of single tokens of `rows` (n tensors of token ids); 0 without tokens."""
    if not sum(map(len, rows)):
        return 0.0
    counts = np.bincount(torch.cat(list(rows)).numpy())  # (V,)
    return _entropy(counts[counts > 0], miller_madow)


def joint(rows: Sequence[Tensor], *, miller_madow: bool = False) -> float:
    """Entropy of pairs of adjacent tokens inside a row; 0 without pairs."""
    _, counts = _bigrams(rows)
    return _entropy(counts, miller_madow)


def conditional(rows: Sequence[Tensor], *, miller_madow: bool = False) -> float:
    """Entropy of a token given the one before: that of pairs less that of their first tokens; 0 without pairs."""
    first, counts = _bigrams(rows)
    if not len(counts):
        return 0.0
    heads = np.flatnonzero(np.diff(first, prepend=-1))  # (m,) where the next first token begins
    marginal = np.add.reduceat(counts, heads)  # (m,)
    return max(_entropy(counts, miller_madow) - _entropy(marginal, miller_madow), 0.0)


def _bigrams(rows: Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token (m,), ascending, and count (m,) of each distinct pair of adjacent tokens.

    Needs three int64 per pair at most: the keys are sorted in place, and nothing of the size V x V is made.
    """
    size = 1 + max((int(row.max()) for row in rows if len(row)), default=0)
    keys = np.concatenate([np.zeros(0, np.int64), *(row[:-1].numpy() * size + row[1:].numpy() for row in rows)])  # (N,)
    keys.sort()
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), np.bool_), keys[1:] != keys[:-1]]))  # (m,)
    return keys[starts] // size, np.diff(starts, append=len(keys))


def _entropy(counts: NDArray[np.int64], miller_madow: bool) -> float:
    """Of positive counts (m,): ln N - sum c ln c / N, which is at least 0 but for rounding."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    value = max(float(np.log(total) - (counts * np.log(counts)).sum() / total), 0.0)
    return value + (len(counts) - 1) / (2 * total) if miller_madow else value


def _cut(rows: list[Tensor], budget: int) -> list[Tensor]:
    """The rows up to exactly `budget` tokens."""
    kept = []
    for row in rows:
        if budget <= 0:
            break
        kept.append(row[:budget])
        budget -= len(row)
    return kept


# ---- von Neumann entropy -------------------------------------------------------------------------------------------


def von_neumann(vectors: Array, *, kernel: str = "cosine") -> float:
    """Entropy of the eigenvalues of K / tr K, K the Gram matrix of `vectors` (N, d); vectors of 0 have no direction.

    The logarithm of the Vendi score; at most ln min(N, d).
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (N, 1)
    kept = norms[:, 0] > 0
    if not kept.any():
        return 0.0
    points = vectors[kept] / (norms[kept] if kernel == "cosine" else 1.0)  # (N, d)
    gram = points @ points.T if len(points) <= points.shape[1] else points.T @ points  # the same spectrum but for 0
    values = np.linalg.eigvalsh(gram).clip(min=0)
    values = values[values > 0] / values.sum()
    return max(float(-(values * np.log(values)).sum()), 0.0)


def text_vectors(groups: Sequence[Sequence[str]], *, file: str | None) -> list[Array]:
    """Vectors (N, d) of the texts of each group: the mean of the unit vectors of their words, 0 without any.

    Words are runs of letters and digits, and every other mark by itself; fastText splits at blanks alone.
    file: word vectors, see `Entropy.vectors`; words that it lacks are left out. Raises ConfigError as `read_vectors`.
    """
    known: dict[str, int] = {}
    words = [[[known.setdefault(word, len(known)) for word in WORD.findall(text)] for text in g] for g in groups]
    names = list(known)
    lookup = hashed_vectors() if file is None else read_vectors(Path(file), set(names))
    found = []
    for group in words:
        used = np.unique(np.concatenate([np.zeros(0, np.int64), *(np.array(t, np.int64) for t in group)]))  # (W,)
        unit = _unit(lookup([names[word] for word in used]))  # (W, d)
        has_vector = np.linalg.norm(unit, axis=1) > 0  # (W,)
        vectors = np.zeros((len(group), unit.shape[1]))  # (N, d)
        for i, text in enumerate(group):
            ids, counts = np.unique(np.searchsorted(used, np.array(text, np.int64)), return_counts=True)
            vectors[i] = counts @ unit[ids] / max(int(counts @ has_vector[ids]), 1)
        found.append(vectors)
    return found


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (W, 1)
    scaled: Array = vectors / np.where(norms > 0, norms, 1)
    return scaled


def hashed_vectors() -> Lookup:
    """Gives vectors (W, d): the mean of the Gaussian vectors that a word and its character n-grams are hashed to."""
    table = torch.from_numpy(np.random.default_rng(_SEED).standard_normal((_BUCKETS, _DIMENSIONS), dtype=np.float32))

    def lookup(words: list[str]) -> Array:
        grams = [_grams(word) for word in words]
        lengths = torch.tensor([len(g) for g in grams], dtype=torch.int64)  # (W,)
        buckets = torch.tensor([bucket for g in grams for bucket in g], dtype=torch.int64)
        means = embedding_bag(buckets, table, lengths.cumsum(0) - lengths, mode="mean")  # (W, d)
        vectors: Array = means.double().numpy()
        return vectors

    return lookup


def _grams(word: str) -> list[int]:
    """Buckets of a word and of its n-grams, with marks for its begin and end, as in fastText."""
    whole = f"<{word}>"
    grams = [whole[i : i + n] for n in range(_SHORTEST, _LONGEST + 1) for i in range(len(whole) - n + 1)]
    return [zlib.crc32(gram.encode()) % _BUCKETS for gram in {whole: None, **dict.fromkeys(grams)}]


def read_vectors(file: Path, words: set[str]) -> Lookup:
    """Looks words up in a text file with a word and its vector per line, in the word's case or in lower case.

    One pass; only the vectors of `words` are kept. A first line of two numbers, as fastText writes, is a header.
    Raises ConfigError for a line with another number of columns, or a vector that is not made of finite numbers.
    """
    wanted = words | {word.lower() for word in words}
    table: dict[str, Array] = {}
    width = 0
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            word, *columns = line.rstrip().split(" ")
            if number == 1 and len(columns) == 1:
                continue
            width = width or len(columns)
            if len(columns) != width or not width:
                raise _bad_line(file, number, f"{len(columns)} columns after the word", f"{width} as in the first")
            if word in wanted:
                table[word] = _parsed(file, number, columns)
    if not table:
        raise ConfigError("no word of the pool is in the file of vectors", got=file, do="give vectors of its language")

    def lookup(names: list[str]) -> Array:
        zero = np.zeros(width)
        return np.array([table.get(name, table.get(name.lower(), zero)) for name in names]).reshape(-1, width)

    return lookup


def _parsed(file: Path, number: int, columns: list[str]) -> Array:
    try:
        vector = np.array(columns, dtype=np.float64)
    except ValueError:
        vector = np.array([np.nan])
    if not np.isfinite(vector).all():
        raise _bad_line(file, number, " ".join(columns[:5]), "finite numbers")
    return vector


def _bad_line(file: Path, number: int, got: str, allowed: str) -> ConfigError:
    return ConfigError(f"line {number} of the word vectors cannot be read", got=f"{file}: {got}", allowed=allowed)
