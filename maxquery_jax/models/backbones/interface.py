"""What every backbone is to the models that are built on it."""

from typing import Protocol

import jax.numpy as jnp

from maxquery_jax.typing import Array, PixelFeatures


class Backbone(Protocol):
    """A Flax module from an image to its pixel features; a field named `backbone` of its model.

    Attributes:
        conv_form: formulation of `ops.conv.conv3d`, also for the heads on top.
        dtype: compute dtype.
    """

    conv_form: str
    dtype: jnp.dtype

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of `PixelFeatures.decoder`, fine to coarse; two stages may share one."""
        ...

    @property
    def encoder_widths(self) -> dict[int, int]:
        """Channels of `PixelFeatures.encoder` by output stride."""
        ...

    def __call__(self, image: Array, *, train: bool = False) -> PixelFeatures:
        """Pixel features of an image [B, D, H, W, P], by output stride."""
        ...

    def pyramid(self, image: Array, *, train: bool = False) -> tuple[list[Array], list[Array]]:
        """Encoder and decoder features of every stage, fine to coarse."""
        ...
