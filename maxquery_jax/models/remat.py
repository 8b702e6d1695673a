"""Rematerialisation: which activations of a block are kept for its backward pass.

It trades time for memory on accelerators. XLA for CPU undoes it (measured: the same peak memory
with and without), so that its effect shows in `launch.compile` for a TPU or GPU only.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

POLICIES = ('none', 'norms', 'blocks')
"""'none' keeps all. 'norms' keeps convolutions' outputs and computes norms and activations again:
half the memory of a convolutional block for few operations. 'blocks' keeps a block's input alone:
least memory, one more forward pass."""

CONV_OUTPUT = 'conv_output'


def mark_conv_output(x: Any) -> Any:
    """Marks what the policy 'norms' keeps."""
    return checkpoint_name(x, CONV_OUTPUT)


def rematerialise(block: type[nn.Module], policy: str) -> Any:
    """The module class whose backward pass computes again what the policy does not keep.

    Args:
        block: a module class that is called with arrays alone. Its parameters keep their names.
        policy: one of `POLICIES`.

    Returns:
        A module class to be used as `block`.

    Raises:
        ValueError: if the policy is unknown.
    """
    if policy not in POLICIES:
        raise ValueError(f'remat must be one of {POLICIES}, got {policy!r}')
    if policy == 'none':
        return block
    names = (CONV_OUTPUT,) if policy == 'norms' else ()
    return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(*names))
