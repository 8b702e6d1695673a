"""Shape of a U-Net from the patch it sees: nnU-Net's planning rule.

The rule (nnU-Net v2, `network_topology.py`) halves an axis while its feature map has at least
2 * `min_edge` voxels and its spacing is below twice the smallest one among such axes; an axis that
would be halved alone needs 3 * `min_edge`. A kernel grows from 1 to 3 along an axis once the
spacing there is below twice the smallest, and stays 3.
"""

import dataclasses
import itertools
import math

from maxquery_jax.errors import UserError

Triple = tuple[int, int, int]

_AXES = ('z', 'y', 'x')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Stages of a U-Net, fine to coarse.

    Attributes:
        features: channels per stage.
        strides: (z, y, x) stride of the first convolution of each stage.
        kernels: (z, y, x) kernel size of the convolutions of each stage.
    """

    features: tuple[int, ...]
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    def __post_init__(self):
        if not len(self.features) == len(self.strides) == len(self.kernels) > 0:
            raise ValueError(
                'features, strides and kernels need one entry per stage, got '
                f'{len(self.features)}, {len(self.strides)} and {len(self.kernels)}'
            )

    @property
    def num_stages(self) -> int:
        """Number of resolutions, the input's included."""
        return len(self.features)

    @property
    def cumulative_strides(self) -> tuple[Triple, ...]:
        """Stride of every stage against the input."""
        return tuple(
            itertools.accumulate(self.strides, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2]))
        )

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Largest cumulative stride of every stage: the keys of `PixelFeatures`."""
        return tuple(max(stride) for stride in self.cumulative_strides)

    def check_patch(self, patch_size: tuple[int, ...]) -> None:
        """Raises UserError if a side of the patch is not divisible by the total stride."""
        total = self.cumulative_strides[-1]
        for name, side, stride in zip(_AXES, patch_size, total, strict=True):
            if side % stride:
                below, above = side // stride * stride, -(-side // stride) * stride
                near = f'{below} or {above}' if below else f'{above}'
                raise UserError(
                    f'patch_size {tuple(patch_size)}: side {side} along {name} is not divisible '
                    f'by the network stride {stride}; use {near}'
                )


def plan_topology(
    patch_size: Triple,
    spacing_mm: tuple[float, float, float],
    base: int = 32,
    cap: int = 320,
    min_edge: int = 4,
    max_stages: int | None = None,
) -> Topology:
    """Plans the stages of a U-Net for a patch (nnU-Net v2 planner).

    Args:
        patch_size: voxels (z, y, x).
        spacing_mm: voxel size (z, y, x) in mm.
        base: channels of the first stage; they double from stage to stage.
        cap: most channels of a stage.
        min_edge: smallest side of the coarsest feature map.
        max_stages: most stages, at least 2; None for as many as the rule gives.

    Returns:
        The topology; every side of `patch_size` is divisible by its total stride.

    Raises:
        UserError: if a number is not positive, the patch is too small for two stages, or a side
            is not divisible by the total stride.
    """
    _check_positive(patch_size, spacing_mm, base, cap, min_edge, max_stages)
    size = list(patch_size)
    spacing = list(spacing_mm)
    kernel = [1, 1, 1]
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = []
    while max_stages is None or len(strides) < max_stages:
        pooled = _axes_to_pool(size, spacing, min_edge)
        if not pooled:
            break
        finest = min(spacing)
        kernel = [3 if spacing[a] / finest < 2 else kernel[a] for a in range(3)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if a in pooled else 1 for a in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        spacing = [mm * s for mm, s in zip(spacing, stride, strict=True)]
    kernels.append((3, 3, 3))  # the rule's bottleneck, whatever the spacing
    features = tuple(min(base * 2**stage, cap) for stage in range(len(strides)))
    topology = Topology(features=features, strides=tuple(strides), kernels=tuple(kernels))
    if topology.num_stages < 2:
        raise UserError(
            f'patch_size {tuple(patch_size)} is too small for a U-Net of two stages: use sides of '
            f'at least {2 * min_edge} voxels'
        )
    topology.check_patch(patch_size)
    return topology


def _axes_to_pool(size: list[int], spacing: list[float], min_edge: int) -> list[int]:
    """Axes that the next stage halves; empty at the bottleneck."""
    large = [a for a in range(3) if size[a] >= 2 * min_edge]
    if not large:
        return []
    finest = min(spacing[a] for a in large)
    pooled = [a for a in large if spacing[a] / finest < 2]
    if len(pooled) == 1 and size[pooled[0]] < 3 * min_edge:
        return []
    return pooled


def _check_positive(patch_size, spacing_mm, base, cap, min_edge, max_stages) -> None:
    """Raises UserError naming the first value that is not a positive number."""
    for name, values in {'patch_size': patch_size, 'spacing_mm': spacing_mm}.items():
        if len(values) != 3:
            raise UserError(f'{name} {tuple(values)}: give three numbers (z, y, x)')
    for name, side in zip(_AXES, patch_size, strict=True):
        if side < 1 or side != int(side):
            raise UserError(f'patch_size {tuple(patch_size)}: {name} must be a positive integer')
    for name, mm in zip(_AXES, spacing_mm, strict=True):
        if not (mm > 0 and math.isfinite(mm)):
            raise UserError(f'spacing_mm {tuple(spacing_mm)}: {name} must be positive, in mm')
    limits = {
        'base': (base, 1),
        'cap': (cap, 1),
        'min_edge': (min_edge, 1),
        'max_stages': (max_stages, 2),
    }
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise UserError(f'{name} of the U-Net must be at least {least}, got {value}')
