"""A small 3D SPADE generator (Park et al., CVPR 2019) and its patch discriminator.

Unspecified in the paper: MaxQuery does not say how SynthCP, a method for photographs, became one
for CT. Both networks follow the plan of the segmenter's topology, so that they fit every patch it
fits, thick slices included.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax.models import layers
from maxquery_jax.models.backbones.topology import Topology
from maxquery_jax.models.maxquery import average_pool
from maxquery_jax.ops.norm import instance_norm
from maxquery_jax.typing import Array

_SLOPE = 0.2  # of leaky ReLU, in SPADE and its discriminator


class SpadeNorm(nn.Module, kw_only=True):
    """Instance norm whose scale and shift are computed, voxel by voxel, from the labels.

    Deviation: SPADE predicts scale and shift with convolutions of 3; here they are of 1, after a
    hidden layer of 3, at a fraction of the cost in 3D.

    Attributes:
        label_features: width of the hidden layer.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    label_features: int
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, labels: Array) -> Array:
        """Maps [B, d, h, w, C] and one-hot labels [B, d, h, w, K] to [B, d, h, w, C]."""
        features = x.shape[-1]
        common: dict[str, Any] = {'form': self.conv_form, 'dtype': self.dtype}
        hidden = layers.Conv3D(features=self.label_features, name='hidden', **common)(labels)
        hidden = nn.relu(hidden)
        point: dict[str, Any] = {'kernel_size': (1, 1, 1), **common}
        gamma = layers.Conv3D(features=features, name='gamma', **point)(hidden)
        beta = layers.Conv3D(features=features, name='beta', **point)(hidden)
        normal: Any = instance_norm(x, jnp.ones(features), jnp.zeros(features))
        return normal * (1 + gamma) + beta


class SpadeBlock(nn.Module, kw_only=True):
    """Residual block: SPADE norm, leaky ReLU, convolution, as often as `num_convs`.

    Attributes:
        num_convs: 2 in SPADE.
        label_features: see `SpadeNorm`.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    label_features: int
    num_convs: int = 2
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, labels: Array) -> Array:
        """Maps [B, d, h, w, C] and one-hot labels [B, d, h, w, K] to [B, d, h, w, C]."""
        common: dict[str, Any] = {'dtype': self.dtype}
        y = x
        for index in range(self.num_convs):
            norm = SpadeNorm(
                label_features=self.label_features,
                conv_form=self.conv_form,
                name=f'norm{index}',
                **common,
            )
            y = nn.leaky_relu(norm(y, labels), _SLOPE)
            y = layers.Conv3D(
                features=x.shape[-1], form=self.conv_form, name=f'conv{index}', **common
            )(y)
        return x + y


class Generator(nn.Module, kw_only=True):
    """Labels to a normalised image, from the coarsest grid of the topology upwards.

    Deviations: labels reach the coarser stages as averages of their one-hot code, not as the
    nearest label, which would lose small tumours. The image is not squashed by tanh: normalised
    HU are not confined to [-1, 1]. Weights are not spectrally normalised.

    Attributes:
        topology: of the segmenter.
        base_features: width at the input's resolution, doubled per stage.
        max_features: largest width.
        convs_per_stage: convolutions of each block.
        label_features: see `SpadeNorm`.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    topology: Topology
    base_features: int = 16
    max_features: int = 64
    convs_per_stage: int = 2
    label_features: int = 16
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, labels: Array, *, channels: int) -> Array:
        """Maps one-hot labels [B, D, H, W, K] to an image [B, D, H, W, channels], float32."""
        strides = self.topology.strides
        pyramid = [labels]
        for stride in strides[1:]:
            pyramid.append(average_pool(pyramid[-1], stride))
        common: dict[str, Any] = {'form': self.conv_form, 'dtype': self.dtype}
        last = len(strides) - 1
        x = layers.Conv3D(features=self._width(last), name='stem', **common)(pyramid[last])
        for stage in reversed(range(len(strides))):
            if stage < last:
                # Narrowed before it is enlarged: the same result for less work.
                x = layers.Conv3D(
                    features=self._width(stage), kernel_size=(1, 1, 1), name=f'narrow{stage}',
                    **common,
                )(x)  # fmt: skip
                x = enlarge(x, strides[stage + 1])
            x = SpadeBlock(
                label_features=self.label_features,
                num_convs=self.convs_per_stage,
                conv_form=self.conv_form,
                dtype=self.dtype,
                name=f'block{stage}',
            )(x, pyramid[stage])
        x = nn.leaky_relu(x, _SLOPE)
        image = layers.Conv3D(features=channels, name='image', **common)(x)
        return image.astype(jnp.float32)

    def _width(self, stage: int) -> int:
        return min(self.base_features * 2**stage, self.max_features)


class PatchDiscriminator(nn.Module, kw_only=True):
    """Judges every region of an image given its labels.

    Deviation: kernels are of 3, not 4, so that they stay centred; without spectral norm.

    Attributes:
        strides: (z, y, x) per layer.
        base_features: width of the first layer, doubled per layer.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    strides: tuple[tuple[int, int, int], ...]
    base_features: int = 16
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, tuple[Array, ...]]:
        """Maps image and labels [B, d, h, w, P + K] to logits [B, ..., 1] and layer features."""
        found = []
        for index, stride in enumerate(self.strides):
            x = layers.Conv3D(
                features=self.base_features * 2**index,
                stride=stride,
                form=self.conv_form,
                dtype=self.dtype,
                name=f'conv{index}',
            )(x)
            if index:
                x = layers.InstanceNorm(dtype=self.dtype, name=f'norm{index}')(x)
            x = nn.leaky_relu(x, _SLOPE)
            found.append(x.astype(jnp.float32))
        logits = layers.Conv3D(features=1, form=self.conv_form, dtype=self.dtype, name='head')(x)
        return logits.astype(jnp.float32), tuple(found)


class Discriminator(nn.Module, kw_only=True):
    """Patch discriminators on the image and on coarser averages of it.

    Attributes:
        topology: of the segmenter, whose strides the layers take.
        base_features: see `PatchDiscriminator`.
        num_layers: convolutions of each, before its head.
        num_scales: discriminators.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    topology: Topology
    base_features: int = 16
    num_layers: int = 3
    num_scales: int = 2
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, labels: Array
    ) -> tuple[tuple[Array, ...], tuple[tuple[Array, ...], ...]]:
        """Maps image [B, D, H, W, P] and one-hot labels to logits and features of each scale."""
        x = jnp.concatenate([image, labels], axis=-1)
        strides = self.topology.strides[1:]
        strides = (*strides, *[(1, 1, 1)] * (self.num_scales + self.num_layers))
        logits, features = [], []
        for scale in range(self.num_scales):
            if scale:
                x = average_pool(x, strides[scale - 1])
            judged = PatchDiscriminator(
                strides=strides[scale : scale + self.num_layers],
                base_features=self.base_features,
                conv_form=self.conv_form,
                dtype=self.dtype,
                name=f'scale{scale}',
            )(x)
            logits.append(judged[0])
            features.append(judged[1])
        return tuple(logits), tuple(features)


def enlarge(x: Array, stride: Sequence[int]) -> Array:
    """Repeats every voxel of [B, d, h, w, C] `stride` times along each axis."""
    for axis, count in enumerate(stride, start=1):
        x = jnp.repeat(x, count, axis) if count > 1 else x
    return x


def one_hot(label: Array, num_classes: int) -> Array:
    """[B, D, H, W] integers to [B, D, H, W, K] float32."""
    return jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
