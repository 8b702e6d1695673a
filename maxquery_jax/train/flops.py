"""Floating-point operations of a program, from shapes alone."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from maxquery_jax.typing import PyTree


def program_flops(function: Callable, *args: PyTree) -> float:
    """Operations of one call, as XLA counts them before it optimises: a multiply-add is two.

    XLA counts the body of a loop once, whatever its length, so the other turns are added.

    Args:
        function: of arrays; nothing of it is computed.
        *args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The number; NaN where this backend does not count.
    """
    return _flops(jax.make_jaxpr(function)(*args))


def _flops(program: core.ClosedJaxpr) -> float:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    cost = jax.jit(core.jaxpr_as_fun(program)).lower(*shapes).cost_analysis()
    return _further_turns(program.jaxpr) + (cost['flops'] if cost else math.nan)


def _further_turns(jaxpr: core.Jaxpr) -> float:
    """Operations of all turns but the first, of all loops of a known length."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'scan':
            total += (equation.params['length'] - 1) * _flops(equation.params['jaxpr'])
        total += sum(_further_turns(inner) for inner in _inner(equation.params.values()))
    return total


def _inner(values: Any) -> Iterator[core.Jaxpr]:
    """The programs that an operation holds."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _inner(value)
