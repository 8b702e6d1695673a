"""Random streams that are pure functions of (seed, name, step); nothing random is stored."""

import zlib

import jax

from maxquery_jax.typing import Array


def stream_key(seed: int, name: str) -> Array:
    """Key of a whole stream; a compiled step takes it as an argument and folds the step in."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def stream(seed: int, name: str, step: int | Array) -> Array:
    """Key of stream `name` at `step`; the same in every process and after every restart."""
    return jax.random.fold_in(stream_key(seed, name), step)
