"""The pattern of every metric: a small state that is filled, merged and only then computed.

A state holds counts, never ratios, so that cases, parts of a study and hosts can be measured
apart and merged afterwards: merging over any partition gives exactly the state of the whole.
States are immutable; `update` and `merge` return new ones. They hold numpy arrays of integers
and serialise to plain JSON.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, TypeVar

import numpy as np

BLOCK_VOXELS = 1 << 21
"""Voxels looked at in one go: temporaries stay near 50 MB whatever the size of the scan."""


class State(Protocol):
    """What every metric state offers; `empty` and `update` differ in their arguments."""

    def merge(self, other: Self) -> Self:
        """State of both parts together."""
        ...

    def compute(self) -> Any:
        """The metric's value; NaN where it is undefined."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain lists and integers, lossless."""
        ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        ...


StateT = TypeVar('StateT', bound=State)


def merge_all(states: Iterable[StateT]) -> StateT:
    """Merges one or more states.

    Raises:
        TypeError: if there is none; the caller knows what an empty state looks like.
    """
    return functools.reduce(lambda left, right: left.merge(right), states)


def iterate_blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields matching flat pieces of equally shaped arrays, about `BLOCK_VOXELS` voxels each.

    Pieces are slabs across the slowest axis of the first array, so neither C nor Fortran order
    (nibabel's) costs a copy of the whole volume. Callers must not depend on the order.

    Args:
        *arrays: arrays of one common shape, at least one axis.

    Raises:
        ValueError: if the shapes differ.
    """
    first = arrays[0]
    if any(array.shape != first.shape for array in arrays):
        raise ValueError(f'shapes differ: {[array.shape for array in arrays]}')
    if not first.size:
        return
    axis = int(np.argmax(np.abs(first.strides)))
    length = first.shape[axis]
    thickness = max(1, BLOCK_VOXELS * length // first.size)
    for start in range(0, length, thickness):
        index = (slice(None),) * axis + (slice(start, start + thickness),)
        yield tuple(array[index].ravel() for array in arrays)
