"""Random streams that are pure functions of (seed, name, step); nothing random is stored."""

import zlib

import jax

from maxquery_jax.typing import Array


def stream(seed: int, name: str, step: int | Array) -> Array:
    """Key of stream `name` at `step`; the same in every process and after every restart."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)
