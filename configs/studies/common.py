"""A study of some of the tables that share a set of variants."""

from collections.abc import Mapping
from typing import Any


def make_study(
    name: str,
    tables: tuple[dict[str, Any], ...],
    variants: Mapping[str, Mapping[str, Any]],
    **fields: Any,
) -> dict[str, Any]:
    """A study with the variants that its tables need, and those that these share stages with.

    Args:
        name: of the study.
        tables: to fill.
        variants: to choose from.
        **fields: of `study.spec.Study`: title, base, seeds, folds.
    """
    needed = {row['variant'] for table in tables for row in table['rows']}
    while missing := {variants[v].get('share', v) for v in needed} - needed:
        needed |= missing
    return {
        'name': name,
        'variants': {v: chosen for v, chosen in variants.items() if v in needed},
        'tables': tables,
        **fields,
    }
