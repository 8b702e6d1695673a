"""3D convolution as a scan over depth, the form XLA:CPU runs fastest.

XLA:CPU has no fast 3D convolution: it is several times slower than a matrix product of the same
size, and the input gradient of a strided one falls to a naive loop (jax-ml/jax#23783, #31662).
Here a loop walks the depth slices; each step gathers the in-plane neighbourhood of one slice into
a patch matrix that stays in cache and multiplies it with the kernel of each depth tap. Slices of
all samples are walked in one loop: row n of [B*D, H, W, C] is slice n % D of sample n // D.

Values and gradients equal `lax.conv_general_dilated` up to rounding. Not for sharded runs: a loop
over a sharded depth gathers it, and `cost_analysis` counts the FLOPs of a loop body only once.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from maxquery_jax.typing import Array

Triple = tuple[int, int, int]
Pair = tuple[int, int]


def is_supported(kernel_size: Triple, stride: Triple) -> bool:
    """Whether `conv3d_scan` handles a convolution: kernel sides 1 or 3, strides 1 or 2."""
    return all(k in (1, 3) for k in kernel_size) and all(s in (1, 2) for s in stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3d_scan(x: Array, kernel: Array, stride: Triple) -> Array:
    """3D convolution padded by (k - 1) // 2 on both sides, as a scan over depth.

    Args:
        x: [B, D, H, W, Cin].
        kernel: [kd, kh, kw, Cin, Cout], sides 1 or 3.
        stride: (sd, sh, sw), each 1 or 2.

    Returns:
        [B, ceil(D/sd), ceil(H/sh), ceil(W/sw), Cout] in the dtype of `x`.
    """
    return _conv(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: Triple) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _backward(stride: Triple, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    if stride == (1, 1, 1):
        flipped = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
        dx = _conv(g, flipped, stride)
    else:
        dx = _input_gradient_strided(g, kernel, stride, x.shape)
    return dx, _kernel_gradient(x, g, kernel, stride)


conv3d_scan.defvjp(_forward, _backward)


def _conv(x: Array, kernel: Array, stride: Triple) -> Array:
    """The convolution without a gradient of its own."""
    if kernel.shape[0] == 1:
        return _conv_in_plane(x, kernel, stride)
    return _conv_depth(x, kernel, stride)


def _conv_in_plane(x: Array, kernel: Array, stride: Triple) -> Array:
    """A kernel of depth 1: the slices are a batch of 2D convolutions, which XLA:CPU runs well."""
    x = x[:, :: stride[0]]
    b, d, h, w, c = x.shape
    kh, kw = kernel.shape[1:3]
    y = lax.conv_general_dilated(
        x.reshape(b * d, h, w, c),
        kernel[0],
        stride[1:],
        ((kh // 2, kh // 2), (kw // 2, kw // 2)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y.reshape(b, d, *y.shape[1:])


def _conv_depth(x: Array, kernel: Array, stride: Triple) -> Array:
    """A kernel of depth 3: every slice adds to the outputs it touches, kept in accumulators."""
    b, d, h, w, c = x.shape
    kd, kh, kw, _, cout = kernel.shape
    sd, sh, sw = stride
    out_d, out_h, out_w = -(-d // sd), -(-h // sh), -(-w // sw)
    slices = x.reshape(b * d, h, w, c)
    taps = kernel.reshape(kd, kh * kw * c, cout)
    accumulate = jnp.promote_types(x.dtype, jnp.float32)
    dot = functools.partial(jnp.dot, preferred_element_type=accumulate)

    def patches(row):
        return _patches(row, (kh, kw), (sh, sw)).reshape(out_h * out_w, kh * kw * c)

    def step_unit(n, carry):
        out, ending, current = carry  # sums of the outputs at depth - 1 and at depth
        first = n % d == 0
        p = patches(lax.dynamic_index_in_dim(slices, n, 0, keepdims=False))
        ending = ending + dot(p, taps[2])
        current = jnp.where(first, 0, current) + dot(p, taps[1])
        # No output ends at a sample's first slice: that write lands where the next one does. The
        # second write is final only at the last slice; elsewhere the next step completes it.
        out = _put(out, ending, jnp.where(first, n, n - 1))
        out = _put(out, current, n)
        return out, current, dot(p, taps[0])

    def step_double(n, carry):
        out, current = carry  # sum of the output at the even slice
        depth = n % out_d * 2
        row = n // out_d * d + depth
        even = patches(lax.dynamic_index_in_dim(slices, row, 0, keepdims=False))
        odd = patches(_slice_or_zero(slices, row + 1, depth + 1 < d))
        current = jnp.where(depth == 0, 0, current) + dot(even, taps[1]) + dot(odd, taps[2])
        return _put(out, current, n), dot(odd, taps[0])

    zero = jnp.zeros((out_h * out_w, cout), accumulate)
    out = jnp.zeros((b * out_d, out_h * out_w, cout), x.dtype)
    if sd == 1:
        out = lax.fori_loop(0, b * d, step_unit, (out, zero, zero))[0]
    else:
        out = lax.fori_loop(0, b * out_d, step_double, (out, zero))[0]
    return out.reshape(b, out_d, out_h, out_w, cout)


def _put(out: Array, value: Array, index: Array) -> Array:
    """Writes one slice of the output, in place inside a loop."""
    return lax.dynamic_update_index_in_dim(out, value.astype(out.dtype), index, 0)


def _slice_or_zero(slices: Array, index: Array, valid: Array) -> Array:
    """Slice `index` of [B*D, H, W, C], zeros where it lies outside its sample."""
    index = jnp.clip(index, 0, slices.shape[0] - 1)
    row = lax.dynamic_index_in_dim(slices, index, 0, keepdims=False)
    return jnp.where(valid, row, jnp.zeros_like(row))


def _patches(row: Array, kernel: Pair, stride: Pair) -> Array:
    """In-plane neighbourhoods of one slice [H, W, C]: [H', W', kh*kw*C], zero padded."""
    (kh, kw), (sh, sw) = kernel, stride
    h, w, c = row.shape
    row = jnp.pad(row, ((kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    return jnp.concatenate(
        [
            lax.slice(row, (i, j, 0), (i + h, j + w, c), (sh, sw, 1))
            for i, j in itertools.product(range(kh), range(kw))
        ],
        axis=-1,
    )


def _kernel_gradient(x: Array, g: Array, kernel: Array, stride: Triple) -> Array:
    """Gradient of the kernel: a loop over output slices, gradients times the patches they met.

    The gradients, not the much larger patches, are the transposed factor of each product, because
    XLA:CPU has no fast product with a transposed left side and copies it.
    """
    b, d, h, w, c = x.shape
    kd, kh, kw, _, cout = kernel.shape
    sd = stride[0]
    out_d = g.shape[1]
    slices = x.reshape(b * d, h, w, c)
    gradients = g.reshape(b * out_d, -1, cout)
    accumulate = jnp.promote_types(x.dtype, jnp.float32)

    def product(rows, plane):
        """Gradient slices [H'*W', Cout] against one input slice: [len(rows)*Cout, kh*kw*C]."""
        p = _patches(plane, (kh, kw), stride[1:]).reshape(rows[0].shape[0], kh * kw * c)
        return jnp.dot(jnp.concatenate(rows, axis=-1).T, p, preferred_element_type=accumulate)

    def step(n, total):
        depth = n % out_d
        row = n // out_d * d + depth * sd
        plane = lax.dynamic_index_in_dim(slices, row, 0, keepdims=False)
        here = lax.dynamic_index_in_dim(gradients, n, 0, keepdims=False)
        if kd == 1:
            return (total[0] + product([here], plane),)
        after = _slice_or_zero(gradients, n + 1, depth + 1 < out_d)
        if sd == 1:
            # Tap k of output d reads slice d + k - 1: slice d serves outputs d + 1, d and d - 1.
            before = _slice_or_zero(gradients, n - 1, depth > 0)
            return (total[0] + product([after, here, before], plane),)
        odd = _slice_or_zero(slices, row + 1, depth * 2 + 1 < d)
        return total[0] + product([here], plane), total[1] + product([after, here], odd)

    groups = ((0,),) if kd == 1 else ((0, 1, 2),) if sd == 1 else ((1,), (0, 2))  # taps together
    total = tuple(jnp.zeros((len(taps) * cout, kh * kw * c), accumulate) for taps in groups)
    total = lax.fori_loop(0, b * out_d, step, total)
    by_tap = {}
    for taps, part in zip(groups, total, strict=True):
        by_tap.update(zip(taps, part.reshape(len(taps), cout, kh, kw, c), strict=True))
    gradient = jnp.stack([by_tap[k] for k in range(kd)])
    return gradient.transpose(0, 2, 3, 4, 1).astype(kernel.dtype)


def _phase_taps(kernel: int, stride: int, phase: int) -> list[Pair]:
    """(tap, shift) pairs of one axis: input j*stride + phase feeds output j + shift by the tap."""
    offset = phase + kernel // 2
    return [(k, (offset - k) // stride) for k in range(kernel) if (offset - k) % stride == 0]


def _input_gradient_strided(g: Array, kernel: Array, stride: Triple, shape: tuple) -> Array:
    """Gradient of the input of a strided convolution, by phase of the input position.

    Inputs of one phase (position modulo stride) are read by the same taps, so per phase it is a
    dense product of shifted output gradients; the phases are interleaved at the end.
    """
    b, d, h, w, c = shape
    kd, kh, kw, _, cout = kernel.shape
    sd, sh, sw = stride
    _, out_d, out_h, out_w, _ = g.shape
    slices = g.reshape(b * out_d, out_h, out_w, cout)
    accumulate = jnp.promote_types(g.dtype, jnp.float32)

    def in_plane_phase(rows, depth_taps, phase):
        """Inputs of one slice at one in-plane phase: [out_h, out_w, C]."""
        in_plane = itertools.product(_phase_taps(kh, sh, phase[0]), _phase_taps(kw, sw, phase[1]))
        taps = list(itertools.product(zip(depth_taps, rows, strict=True), in_plane))
        if not taps:  # a kernel side of 1 leaves holes
            return jnp.zeros((out_h, out_w, c), g.dtype)
        shifted = [
            row[1 + i : 1 + i + out_h, 1 + j : 1 + j + out_w] for (_, row), ((_, i), (_, j)) in taps
        ]
        weights = [kernel[z, y, x].T for ((z, _), _), ((y, _), (x, _)) in taps]
        p = jnp.concatenate(shifted, axis=-1).reshape(out_h * out_w, len(taps) * cout)
        dx = jnp.dot(p, jnp.concatenate(weights), preferred_element_type=accumulate)
        return dx.astype(g.dtype).reshape(out_h, out_w, c)

    def plane(n, depth_taps):
        """All in-plane phases of one input slice: [out_h, sh, out_w, sw, C]."""
        rows = []
        for _, shift in depth_taps:
            depth = n % out_d + shift
            row = _slice_or_zero(slices, n + shift, (depth >= 0) & (depth < out_d))
            rows.append(jnp.pad(row, ((1, 1), (1, 1), (0, 0))))
        phases = itertools.product(range(sh), range(sw))
        stacked = jnp.stack([in_plane_phase(rows, depth_taps, phase) for phase in phases])
        return stacked.reshape(sh, sw, out_h, out_w, c).transpose(2, 0, 3, 1, 4)

    def step(n):
        return jnp.stack([plane(n, _phase_taps(kd, sd, phase)) for phase in range(sd)])

    dx = lax.map(step, jnp.arange(b * out_d))
    dx = dx.reshape(b, out_d * sd, out_h * sh, out_w * sw, c)
    return dx[:, :d, :h, :w]
