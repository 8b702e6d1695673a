"""The one place where a 3D convolution is written.

Forms of the same function: 'plain' is XLA's convolution (GPU, sharded runs on CPUs, FLOP counts,
small sizes), 'scan' a loop over depth that is several times faster on one CPU (`conv_scan`).
'planes' is a sum of 2D convolutions for TPUs (`conv_planes`), where a network also holds volumes of
few channels folded (`fold`).
"""

import math

import jax.numpy as jnp
from jax import lax

from maxquery_jax.ops import conv_planes, conv_scan
from maxquery_jax.ops.conv_scan import Triple
from maxquery_jax.ops.platform import traced_for
from maxquery_jax.typing import Array

FORMS = ('plain', 'scan', 'planes', 'auto')

# Multiply-adds of one sample from which the scan form repays its compile time (seconds a layer) on
# a CPU within some hundred steps. A strided one pays earlier: the plain input gradient is naive.
_SCAN_MIN_WORK = 2**23
_SCAN_MIN_WORK_STRIDED = 2**20


def conv3d(
    x: Array,
    kernel: Array,
    *,
    stride: Triple = (1, 1, 1),
    form: str = 'plain',
    split: conv_planes.DepthSplit | None = None,
) -> Array:
    """3D convolution, padded by (k - 1) // 2 on both sides of every axis as in PyTorch.

    Args:
        x: [B, D, H, W, Cin].
        kernel: [kd, kh, kw, Cin, Cout], odd sides.
        stride: (sd, sh, sw).
        form: 'plain', 'scan', 'planes' or 'auto' (see `resolve_form`). 'scan' runs the plain form
            where a kernel side is not 1 or 3 or a stride not 1 or 2.
        split: how the depth is split over devices, for 'planes'.

    Returns:
        [B, ceil(D/sd), ceil(H/sh), ceil(W/sw), Cout] in the dtype of `x`.

    Raises:
        ValueError: if a kernel side is even, or the form is unknown.
    """
    kernel_size = (kernel.shape[0], kernel.shape[1], kernel.shape[2])
    if any(k % 2 == 0 for k in kernel_size):
        raise ValueError(f'kernel sides must be odd, got {kernel_size}')
    form = resolve_form(form, x.shape, kernel.shape, stride)
    if kernel_size == (1, 1, 1) and form == 'scan':
        return jnp.dot(x[:, :: stride[0], :: stride[1], :: stride[2]], kernel[0, 0, 0])
    if form == 'scan' and conv_scan.is_supported(kernel_size, stride):
        return conv_scan.conv3d_scan(x, kernel, stride)
    if form == 'planes' and max(kernel_size) > 1:
        return conv_planes.conv3d_planes(x, kernel, stride, split=split)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(k // 2, k // 2) for k in kernel_size],
        dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    )


def resolve_form(
    form: str,
    x_shape: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...] | None = None,
    stride: Triple = (1, 1, 1),
) -> str:
    """Chooses the form of a convolution where 'auto' is asked for.

    'auto' is 'scan' when the computation is traced for one CPU device (the active mesh says so,
    else the default backend has a single device) and one sample's convolution is large enough to
    repay the loop; 'planes' for TPUs; 'plain' otherwise. Ahead-of-time compilation for an absent
    accelerator without an active mesh must ask for its form itself.

    Args:
        form: 'plain', 'scan', 'planes' or 'auto'.
        x_shape: [B, D, H, W, Cin]; without shapes only the device decides.
        kernel_shape: [kd, kh, kw, Cin, Cout].
        stride: (sd, sh, sw).

    Returns:
        'plain', 'scan' or 'planes'.

    Raises:
        ValueError: if the form is unknown.
    """
    if form not in FORMS:
        raise ValueError(f'form must be one of {FORMS}, got {form!r}')
    if form != 'auto':
        return form
    platform, size = traced_for()
    if platform == 'tpu':
        return 'planes'
    if platform != 'cpu' or size > 1:
        return 'plain'
    if x_shape is None or kernel_shape is None:
        return 'scan'
    if tuple(kernel_shape[:3]) == (1, 1, 1):
        return 'scan'  # a matmul
    voxels = math.prod(-(-n // s) for n, s in zip(x_shape[1:4], stride, strict=True))
    least = _SCAN_MIN_WORK if math.prod(stride) == 1 else _SCAN_MIN_WORK_STRIDED
    return 'scan' if voxels * math.prod(kernel_shape) >= least else 'plain'


def conv_transpose3d(x: Array, kernel: Array, stride: Triple) -> Array:
    """Transposed convolution with kernel == stride: a matmul and a depth-to-space.

    The generic transposed convolution is 15-180 times slower on CPU, slow in the gradient on GPUs
    (jax-ml/jax#31662), and gathers its input when the volume is sharded; this does neither.

    Args:
        x: [B, D, H, W, Cin].
        kernel: [sd, sh, sw, Cin, Cout], not flipped: PyTorch's ConvTranspose3d weight
            [Cin, Cout, sd, sh, sw] with its axes permuted.
        stride: (sd, sh, sw).

    Returns:
        [B, sd*D, sh*H, sw*W, Cout].

    Raises:
        ValueError: if the kernel's extent is not the stride.
    """
    if kernel.shape[:3] != tuple(stride):
        raise ValueError(f'kernel {kernel.shape[:3]} and stride {stride} must be equal')
    b, d, h, w, cin = x.shape
    sd, sh, sw, _, cout = kernel.shape
    taps = kernel.transpose(3, 0, 1, 2, 4).reshape(cin, sd * sh * sw * cout)
    y = jnp.dot(x, taps).reshape(b, d, h, w, sd, sh, sw, cout)
    y = y.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(b, d * sd, h * sh, w * sw, cout)
