"""Layers that the text encoders share.

Parameters are float32 and carry logical axis names (`axes`). They have names of their own here,
not those of `models.layers`: an encoder runs once, offline, and its layers must match published
weights (biases everywhere, the epsilon of the weights' config).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.errors import UserError
from maxquery_jax.typing import Array

_INIT_STD = 0.02  # BERT's; CLIP's differ by layer, but weights are always loaded


def _exact_gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=False)


def _quick_gelu(x: Array) -> Array:
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu': _exact_gelu,
    'gelu_new': nn.gelu,  # the tanh approximation
    'quick_gelu': _quick_gelu,
    'relu': nn.relu,
}


def find_activation(name: str) -> Callable[[Array], Array]:
    """The activation that a config.json names.

    Raises:
        UserError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise UserError(
            f'hidden_act {name!r} of the encoder is not supported; take an encoder with one of '
            f'{", ".join(ACTIVATIONS)}'
        )
    return ACTIVATIONS[name]


def _parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], names: Any) -> Any:
    return module.param(name, nn.with_logical_partitioning(init, names), shape, jnp.float32)


class Embedding(nn.Module, kw_only=True):
    """A table of vectors.

    Attributes:
        rows: of the table.
        features: size of a vector.
    """

    rows: int
    features: int

    @nn.compact
    def __call__(self, indices: Array) -> Array:
        """Maps integers [...] to [..., features]."""
        init = nn.initializers.normal(_INIT_STD)
        names = (None, axes.FEATURES_OUT)
        table = _parameter(self, 'table', init, (self.rows, self.features), names)
        return table[indices]


class Dense(nn.Module, kw_only=True):
    """Linear map of the last axis.

    Attributes:
        features: size of the last axis of the output.
        use_bias: whether a bias is added.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, Cin] to [B, T, features]."""
        init = nn.initializers.normal(_INIT_STD)
        shape = (x.shape[-1], self.features)
        y = jnp.dot(x, _parameter(self, 'kernel', init, shape, axes.DENSE_KERNEL))
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            y = y + _parameter(self, 'bias', zeros, (self.features,), (axes.NORM,))[None, None]
        return y


class LayerNorm(nn.Module, kw_only=True):
    """Normalises the last axis, then scale and bias.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, C] to the same shape."""
        shape, names = x.shape[-1:], (axes.NORM,)
        scale = _parameter(self, 'scale', nn.initializers.ones_init(), shape, names)
        bias = _parameter(self, 'bias', nn.initializers.zeros_init(), shape, names)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return y * scale[None, None] + bias[None, None]


class SelfAttention(nn.Module, kw_only=True):
    """Multi-head attention among tokens, with biases.

    Attributes:
        num_heads: divides the width.
    """

    num_heads: int

    @nn.compact
    def __call__(self, x: Array, visible: Array) -> Array:
        """Returns the attended values after the output projection.

        Args:
            x: [B, T, C].
            visible: [B, 1, T, T] bool, whether query token i may see key token j.

        Returns:
            [B, T, C].
        """
        features = x.shape[-1]

        def heads(name: str) -> Array:  # [B, T, heads, C / heads]
            return Dense(features=features, name=name)(x).reshape(*x.shape[:2], self.num_heads, -1)

        query, key, value = heads('query'), heads('key'), heads('value')
        similarity = jnp.einsum('bqhc,bkhc->bhqk', query, key) * query.shape[-1] ** -0.5
        similarity = jnp.where(visible, similarity, jnp.finfo(similarity.dtype).min)
        weights = jax.nn.softmax(similarity, axis=-1)
        retrieved = jnp.einsum('bhqk,bkhc->bqhc', weights, value).reshape(x.shape)
        return Dense(features=features, name='out')(retrieved)


class FeedForward(nn.Module, kw_only=True):
    """Two dense layers with an activation between them.

    Attributes:
        hidden: width between the layers.
        activation: key of `ACTIVATIONS`.
    """

    hidden: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, C] to the same shape."""
        y = Dense(features=self.hidden, name='expand')(x)
        y = find_activation(self.activation)(y)
        return Dense(features=x.shape[-1], name='reduce')(y)
