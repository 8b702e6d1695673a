"""MC Dropout (Gal and Ghahramani, ICML 2016): a row of MaxQuery Tab. 1.

Of a network that was trained with dropout, several passes with other dropped features each are
averaged; the score is the entropy of the softmax of their mean logits (the recipe of SynthCP's
published comparison, which takes 50 passes).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maxquery_jax.typing import Array, PyTree

_SEED = 0


def mean_logits(network: nn.Module, params: PyTree, image: Array, passes: int) -> Array:
    """Mean logits of `passes` passes with dropout.

    The keys derive from the number of the pass alone, so that a scan is predicted alike every time,
    and rows share their dropped features, so that a tile's result does not depend on its batch.

    Args:
        network: a segmentation network with dropout (stream 'dropout').
        params: its parameters.
        image: [B, D, H, W, P], normalised.
        passes: number T of passes; one trace serves them all.

    Returns:
        [B, D, H, W, K] float32.
    """
    return mean_of_passes(lambda key: _logits_of_rows(network, params, image, key), passes)


def mean_of_passes(run: Callable[[Array], Array], passes: int) -> Array:
    """Mean of run(key of pass 0), run(key of pass 1), ..., accumulated in float32."""
    # What comes before the first dropout does not depend on the key: XLA moves it out of the loop,
    # with the same bits, for both forms of convolution. It is 0.1 of the operations of the demo's
    # network and 0.3 of the paper's; splitting the network by hand would gain nothing more.
    base = jax.random.key(_SEED)
    shape = jax.eval_shape(run, base).shape

    def add(total: Array, index: Array) -> tuple[Array, None]:
        return total + run(jax.random.fold_in(base, index)).astype(jnp.float32), None

    total, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), jnp.arange(passes))
    return total / passes


def _logits_of_rows(network: nn.Module, params: PyTree, image: Array, key: Array) -> Array:
    def one(row: Array) -> Array:
        # `train` is what turns dropout on; the norms have no running statistics to leave alone.
        outputs = network.apply({'params': params}, row[None], train=True, rngs={'dropout': key})
        return outputs.seg_logits[0]  # pyright: ignore[reportAttributeAccessIssue]

    return jax.vmap(one)(image) if image.shape[0] > 1 else one(image[0])[None]


def entropy_score(seg_logits: Array) -> Array:
    """Entropy of the class probabilities in nats.

    Args:
        seg_logits: [B, D, H, W, K], mean logits.

    Returns:
        [B, D, H, W] float32 in [0, log K].
    """
    log_softmax = jax.nn.log_softmax(seg_logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
