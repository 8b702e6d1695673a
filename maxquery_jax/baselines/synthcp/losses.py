"""Losses of the generator and the discriminator (SPADE's, without its VGG term)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array


def discriminator_hinge(real: Sequence[Array], fake: Sequence[Array]) -> tuple[Array, Array]:
    """Hinge losses of the discriminator, averaged over scales.

    Args:
        real: logits of each scale for real images.
        fake: the same for synthesised ones.

    Returns:
        mean max(0, 1 - real) and mean max(0, 1 + fake).
    """
    on_real = [jnp.mean(jax.nn.relu(1.0 - x)) for x in real]
    on_fake = [jnp.mean(jax.nn.relu(1.0 + x)) for x in fake]
    return sum(on_real) / len(real), sum(on_fake) / len(fake)  # pyright: ignore[reportReturnType]


def generator_hinge(fake: Sequence[Array]) -> Array:
    """-mean of the logits for synthesised images, averaged over scales."""
    return sum(-jnp.mean(x) for x in fake) / len(fake)  # pyright: ignore[reportReturnType]


def feature_matching(real: Sequence[Sequence[Array]], fake: Sequence[Sequence[Array]]) -> Array:
    """L1 distance of the discriminator's features, summed over layers, averaged over scales.

    Args:
        real: features of each layer of each scale for real images.
        fake: the same for synthesised ones.
    """
    distances = [
        jnp.mean(jnp.abs(a - b))
        for real_scale, fake_scale in zip(real, fake, strict=True)
        for a, b in zip(real_scale, fake_scale, strict=True)
    ]
    return sum(distances) / len(real)  # pyright: ignore[reportReturnType]
