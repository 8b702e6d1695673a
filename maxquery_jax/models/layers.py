"""Building blocks shared by the backbones and the query decoders.

Every parameter carries logical axis names (`axes`), parameters are float32, `dtype` is the compute
dtype, and statistics of norms are float32 whatever the compute dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import initializers, partition, remat
from maxquery_jax.models.initializers import Initializer
from maxquery_jax.ops import conv, norm
from maxquery_jax.ops import fold as folding
from maxquery_jax.ops.conv import Triple
from maxquery_jax.typing import Array

NEGATIVE_SLOPE = 0.01
EPSILON = norm.EPSILON


def he_normal(fan_axis: int = -2) -> Initializer:
    """Normal initialiser of std sqrt(2 / (1 + 0.01**2) / fan), nnU-Net's for leaky ReLU nets.

    Args:
        fan_axis: channel axis counted in the fan beside the spatial extent: -2 for a convolution
            [kd, kh, kw, Cin, Cout]; -1 for a transposed one, where PyTorch's fan is Cout times
            the taps.
    """

    scale = 2.0 / (1.0 + NEGATIVE_SLOPE**2)
    return initializers.variance_scaling(scale, fan_axis, truncated=False)


def _kernel(module: Any, shape: tuple[int, ...], names: tuple[str | None, ...]) -> Array:
    """Kernel parameter of `module`, which has a field `kernel_init`, with its logical axes."""
    init = nn.with_logical_partitioning(module.kernel_init, names)
    return module.param('kernel', init, shape, jnp.float32)


def _bias(module: nn.Module, like: Array, features_axis: str, times: int = 1) -> Array:
    """Bias parameter of `module`, zero at first, in the dtype and rank of its output `like`.

    A folded output holds its channels several `times`.
    """
    name = axes.CLASS if features_axis == axes.CLASS else axes.NORM
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (name,))
    bias: Any = module.param('bias', init, (like.shape[-1] // times,), jnp.float32)
    bias = partition.gather(bias)
    return (
        jnp.tile(bias, times).astype(like.dtype).reshape((1,) * (like.ndim - 1) + like.shape[-1:])
    )


class Conv3D(nn.Module, kw_only=True):
    """3D convolution, padded by (k - 1) // 2 on both sides.

    Attributes:
        features: Cout.
        kernel_size: (kd, kh, kw).
        stride: (sd, sh, sw).
        use_bias: whether a bias is added.
        form: formulation of `ops.conv.conv3d`: 'plain', 'scan' or 'auto'.
        features_axis: logical name of the output channels (`axes.CLASS` for a head).
        kernel_init: initialiser of the kernel; the bias starts at zero.
        fold: of the output, see `ops.fold`; the input has stride[2] times as much.
        dtype: compute dtype.
    """

    features: int
    kernel_size: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    use_bias: bool = True
    form: str = 'plain'
    features_axis: str = axes.FEATURES_OUT
    kernel_init: Initializer = he_normal()
    fold: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        """Maps volumes [B, D, H, W, Ci], to be concatenated, to [B, D', H', W', Cout].

        Folded volumes are not concatenated but convolved one by one, which saves that copy.
        """
        fold_in = self.stride[2] * self.fold
        widths = [part.shape[-1] // (fold_in if self.fold > 1 else 1) for part in parts]
        shape = (*self.kernel_size, sum(widths), self.features)
        kernel = _kernel(self, shape, (*axes.CONV_KERNEL[:-1], self.features_axis))
        kernel, split = partition.gather(kernel.astype(self.dtype)), partition.depth_split()
        parts = tuple(x.astype(self.dtype) for x in parts)
        if self.fold > 1:
            ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
            kernels = jnp.split(kernel, ends, axis=3)
            pairs = zip(parts, kernels, strict=True)
            each = [folding.conv3d_folded(x, k, self.stride, self.fold, split) for x, k in pairs]
            y = functools.reduce(jnp.add, each)
        else:
            x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
            y = conv.conv3d(x, kernel, stride=self.stride, form=self.form, split=split)
        if self.use_bias:
            y = y + _bias(self, y, self.features_axis, self.fold)
        return remat.mark_conv_output(partition.constrain_features(y))


class ConvTranspose3D(nn.Module, kw_only=True):
    """Transposed convolution whose kernel equals its stride.

    Attributes:
        features: Cout.
        stride: (sd, sh, sw), also the kernel's extent.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel; the bias starts at zero.
        fold: of the output, see `ops.fold`; 1, or a multiple of stride[2], of which the input has
            one part.
        dtype: compute dtype.
    """

    features: int
    stride: Triple
    use_bias: bool = True
    kernel_init: Initializer = he_normal(fan_axis=-1)
    fold: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, D, H, W, Cin] to [B, sd*D, sh*H, sw*W, Cout]."""
        fold_in = self.fold // self.stride[2] if self.fold > 1 else 1
        shape = (*self.stride, x.shape[-1] // fold_in, self.features)
        kernel = partition.gather(_kernel(self, shape, axes.CONV_KERNEL).astype(self.dtype))
        x = x.astype(self.dtype)
        if self.fold > 1:
            y = folding.conv_transpose3d_folded(x, kernel, self.stride, fold_in)
        else:
            y = conv.conv_transpose3d(x, kernel, self.stride)
        if self.use_bias:
            y = y + _bias(self, y, axes.FEATURES_OUT, self.fold)
        return partition.constrain_features(y)


class Dense(nn.Module, kw_only=True):
    """Linear map of the last axis.

    Attributes:
        features: size of the last axis of the output.
        use_bias: whether a bias is added.
        features_axis: logical name of the output features (`axes.CLASS` for a class head).
        kernel_init: initialiser of the kernel; the bias starts at zero.
        dtype: compute dtype.
    """

    features: int
    use_bias: bool = True
    features_axis: str = axes.FEATURES_OUT
    kernel_init: Initializer = initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., Cin] to [..., Cout]."""
        names = (axes.FEATURES_IN, self.features_axis)
        kernel = _kernel(self, (x.shape[-1], self.features), names).astype(self.dtype)
        y = jnp.dot(x.astype(self.dtype), partition.gather(kernel))
        if self.use_bias:
            y = y + _bias(self, y, self.features_axis)
        return partition.constrain_features(y)


class InstanceNorm(nn.Module, kw_only=True):
    """Normalises each channel of each sample over its voxels, then scale, bias and leaky ReLU.

    Attributes:
        negative_slope: slope of the activation below zero; 1 for none.
        affine: whether there are a scale and a bias.
        fold: of the input, see `ops.fold`.
        dtype: compute dtype; statistics are float32.
    """

    negative_slope: float = 1.0
    affine: bool = True
    fold: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, ..., C] to the same shape; statistics over the axes between B and C."""
        channels = x.shape[-1] // self.fold
        if self.affine:
            scale, bias = _scale_and_bias(self, channels)
        else:
            scale, bias = jnp.ones(channels), jnp.zeros(channels)
        x = x.astype(self.dtype)
        y: Any = norm.instance_norm(x, scale, bias, self.negative_slope, self.fold)
        return partition.constrain_features(y)


class LayerNorm(nn.Module, kw_only=True):
    """Normalises the last axis, then scale and bias.

    Attributes:
        affine: whether there are a scale and a bias.
        dtype: dtype of the output; statistics are float32.
    """

    affine: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., C] to the same shape."""
        parameters = _scale_and_bias(self, x.shape[-1]) if self.affine else None
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + EPSILON)
        if parameters is not None:
            scale, bias = parameters
            rank = (1,) * (x.ndim - 1) + scale.shape
            y = y * scale.reshape(rank) + bias.reshape(rank)
        return y.astype(self.dtype)


def _scale_and_bias(module: nn.Module, features: int) -> tuple[Array, Array]:
    """Affine parameters [C] of a norm, ones and zeros at first."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    names = (axes.NORM,)
    scale: Any = module.param(
        'scale', nn.with_logical_partitioning(ones, names), (features,), jnp.float32
    )
    bias: Any = module.param(
        'bias', nn.with_logical_partitioning(zeros, names), (features,), jnp.float32
    )
    return partition.gather(scale), partition.gather(bias)


class ConvNormAct(nn.Module, kw_only=True):
    """Convolution, instance norm, leaky ReLU 0.01: the unit of nnU-Net.

    Attributes:
        features: Cout.
        kernel_size: (kd, kh, kw).
        stride: (sd, sh, sw).
        form: formulation of `ops.conv.conv3d`.
        fold: of the output, see `Conv3D`.
        dtype: compute dtype.
    """

    features: int
    kernel_size: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    form: str = 'plain'
    fold: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        """Maps volumes [B, D, H, W, Ci], to be concatenated, to [B, D', H', W', Cout]."""
        x = Conv3D(
            features=self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            form=self.form,
            fold=self.fold,
            dtype=self.dtype,
            name='conv',
        )(*parts)
        return InstanceNorm(
            negative_slope=NEGATIVE_SLOPE, fold=self.fold, dtype=self.dtype, name='norm'
        )(x)


class ResidualBlock(nn.Module, kw_only=True):
    """Two 3x3x3 convolutions beside a shortcut: the unit of MONAI's UNETR family.

    Convolutions have no bias and norms no parameters; the shortcut is a 1x1x1 convolution and a
    norm where the channels change.

    Attributes:
        features: Cout.
        form: formulation of `ops.conv.conv3d`; with 'planes', few channels are folded inside.
        dtype: compute dtype.
    """

    features: int
    form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        """Maps volumes [B, D, H, W, Ci], to be concatenated, to [B, D, H, W, features]."""
        is_same = sum(x.shape[-1] for x in parts) == self.features
        fold = folding.fold_of(self.form, self.features, parts[0].shape[3])
        parts = tuple(folding.refold(x, 1, fold) for x in parts)
        y = self._conv_norm(parts, fold, 'conv0', 3, NEGATIVE_SLOPE)
        y = self._conv_norm((y,), fold, 'conv1', 3)
        x = parts[0] if is_same else self._conv_norm(parts, fold, 'shortcut', 1)
        return folding.refold(nn.leaky_relu(x.astype(self.dtype) + y, NEGATIVE_SLOPE), fold, 1)

    def _conv_norm(
        self,
        parts: tuple[Array, ...],
        fold: int,
        name: str,
        side: int,
        negative_slope: float = 1.0,
    ) -> Array:
        conv3d = Conv3D(
            features=self.features,
            kernel_size=(side, side, side),
            use_bias=False,
            form=self.form,
            fold=fold,
            dtype=self.dtype,
            name=name,
        )
        norm_act = InstanceNorm(
            negative_slope=negative_slope, affine=False, fold=fold, dtype=self.dtype
        )
        return norm_act(conv3d(*parts))


class MLP(nn.Module, kw_only=True):
    """Dense layers with an activation between them, none after the last.

    Attributes:
        features: output size of each layer; the layers are named layer0, layer1, ...
        activation: function between layers.
        last_axis: logical name of the last layer's features (`axes.CLASS` for a class head).
        dtype: compute dtype.
    """

    features: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.gelu
    last_axis: str = axes.FEATURES_OUT
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., Cin] to [..., features[-1]]."""
        for index, features in enumerate(self.features[:-1]):
            x = Dense(features=features, dtype=self.dtype, name=f'layer{index}')(x)
            x = self.activation(x)
        return Dense(
            features=self.features[-1],
            features_axis=self.last_axis,
            dtype=self.dtype,
            name=f'layer{len(self.features) - 1}',
        )(x)


class DropPath(nn.Module, kw_only=True):
    """Drops a residual branch for whole samples (stochastic depth); rng stream 'dropout'.

    Attributes:
        rate: probability of dropping a sample's branch; the others are scaled by 1 / (1 - rate).
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, ...] to the same shape; the identity unless `train`."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))
