"""Deals work out to hosts that need not talk to each other: part i of n, written `i/n`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from maxquery_jax.errors import UserError

T = TypeVar('T')


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """One of `count` parts.

    Attributes:
        index: from 1 to `count`.
        count: number of parts.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `i/n`.

        Raises:
            UserError: it is not of that form, or i is not one of 1 to n.
        """
        try:
            index, count = (int(number) for number in text.split('/'))
        except ValueError:
            index = count = 0
        if not 1 <= index <= count:
            raise UserError(f'--part must look like 1/4 with 1 <= i <= n, got {text!r}')
        return cls(index, count)

    def take(self, items: Sequence[T], name: Callable[[T], str]) -> list[T]:
        """This part's items.

        Items are dealt out in turns by the order of their names: the parts of one list have no
        item twice and none is left out, whatever the order of the list, and their numbers of items
        differ by one at most.

        Args:
            items: with names that differ.
            name: of an item.
        """
        return sorted(items, key=name)[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f'{self.index}/{self.count}'


WHOLE = Part(1, 1)
