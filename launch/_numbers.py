"""Flags that hold three numbers."""

from collections.abc import Sequence
from typing import Any

from maxquery_jax.errors import UserError


def triple(name: str, texts: Sequence[str], kind: type) -> tuple[Any, Any, Any]:
    """The three numbers of flag `name`, as written.

    Raises:
        UserError: they are not numbers, or not three.
    """
    try:
        values = tuple(kind(text) for text in texts)
    except ValueError as error:
        raise UserError(f'--{name} must be three numbers: {error}') from error
    if len(values) != 3:
        raise UserError(f'--{name} must be three numbers, not {len(values)}')
    return values
