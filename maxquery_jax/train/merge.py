"""Parameters of one stage as the beginning of the next."""

import re
from typing import Any

import jax

from maxquery_jax.errors import UserError
from maxquery_jax.train.state import path_name
from maxquery_jax.typing import PyTree


def merge_params(
    initial: PyTree, loaded: PyTree, *, only_loaded: str = '', only_initial: str = ''
) -> PyTree:
    """Takes `loaded` where both trees have a leaf; every other leaf must be excused.

    Args:
        initial: parameters of the new stage.
        loaded: parameters of the old one.
        only_loaded: regex of paths that may be dropped from `loaded`.
        only_initial: regex of paths that may keep their initial value.

    Raises:
        UserError: a path in one tree only that its regex does not cover, or a shape that differs.
    """
    old = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}
    new = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(initial)}
    _require_excused(sorted(set(old) - set(new)), only_loaded, 'only in the checkpoint')
    _require_excused(sorted(set(new) - set(old)), only_initial, 'only in the model')

    def take(path: Any, leaf):
        name = path_name(path)
        if name not in old:
            return leaf
        if old[name].shape != leaf.shape:
            raise UserError(
                f'parameter {name} has shape {old[name].shape} in the checkpoint and '
                f'{leaf.shape} in the model; the two stages need the same backbone'
            )
        return old[name]

    return jax.tree_util.tree_map_with_path(take, initial)


def _require_excused(names: list[str], pattern: str, where: str) -> None:
    unexplained = [name for name in names if not (pattern and re.match(pattern, name))]
    if unexplained:
        shown = ', '.join(unexplained[:4]) + (' ...' if len(unexplained) > 4 else '')
        raise UserError(f'{len(unexplained)} parameters are {where}: {shown}')
