"""Random numbers that depend on nothing but a key, so that every rank and every resume draws the same ones."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: object) -> int:
    """A 63-bit seed from any printable key."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key` alone, e.g. `generator(seed, "labels", step)`."""
    return torch.Generator().manual_seed(seed_of(*key))
