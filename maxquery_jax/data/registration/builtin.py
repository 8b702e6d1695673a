"""The built-in registration of two CT phases: rigid, then a smooth displacement field.

Rigid: six parameters that maximise mutual information (32 bins, HU in -250..350) inside the body
of the reference, at 16, 8 and 4 mm per voxel. It starts from the headers' alignment; where the two
scans do not share a frame of reference, from the better of aligned centres of the volumes and of
the bodies.

Deformable: diffeomorphic demons (Vercauteren et al., NeuroImage 2009) at 8 and 4 mm per voxel, its
field smoothed by a Gaussian of 5 mm after each of 40 steps. HU are clipped to -200..50 first:
organs and blood lie near or above 50 HU in every phase, so that contrast agent exerts no force,
while the borders between air, lung, fat and tissue do. A field that is composed of small smooth
steps hardly folds; `quality` measures it.

Deviation: MaxQuery registers with DEEDS, which is a program of its own (`command`).

One thread and fixed seeds: the same input gives the same bytes.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from maxquery_jax.data.registration.grids import (
    RAS_TO_LPS,
    Grid,
    Pyramid,
    displacement_of,
    field_transform,
    one_thread,
    resample,
    simpleitk,
    to_image,
)
from maxquery_jax.data.registration.quality import BINS, WINDOW_HU, body_mask

AIR_HU = -1024
RIGID_LEVELS_MM = (16.0, 8.0, 4.0)
DEMONS_LEVELS_MM = (8.0, 4.0)
DEMONS_ITERATIONS = 40
SMOOTHING_MM = 5.0
FIELD_STEP_MM = 1 / 64
DEMONS_WINDOW_HU = (-200.0, 50.0)
_SHARED = 0.25  # of one scan's box inside the other's, from which headers are believed
_MASK_MARGIN_MM = 12.0
_MAX_SAMPLES = 100_000
_SEED = 1
_FIRST_STEP_MM, _LAST_STEP_MM, _MAX_STEPS = 4.0, 0.02, 200


class RegistrationFailedError(Exception):
    """The images offer nothing to align, for instance no overlap."""


def shares_frame(fixed: Grid, moving: Grid) -> bool:
    """Whether a good part of one scan's box lies inside the other's, by the headers."""
    return max(_share_inside(fixed, moving), _share_inside(moving, fixed)) >= _SHARED


def _share_inside(grid: Grid, other: Grid) -> float:
    ends = [np.linspace(-0.5, size - 0.5, 12) for size in grid.shape]
    points = np.stack(np.meshgrid(*ends, indexing='ij'), -1).reshape(-1, 3)
    world = points @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    index = (world - other.affine[:3, 3]) @ np.linalg.inv(other.affine[:3, :3]).T
    inside = (index > -0.5 - 1e-6) & (index < np.array(other.shape) - 0.5 + 1e-6)
    return float(inside.all(1).mean())


@one_thread()
def register_rigid(fixed: Pyramid, moving: Pyramid) -> tuple[Any, str]:
    """Finds the rigid transform from the reference to a phase.

    Returns:
        `sitk.Euler3DTransform` about the centre of the reference, and what it started from:
        'headers' or 'centres'.

    Raises:
        RegistrationFailedError: the optimiser found no overlap.
    """
    start = 'headers' if shares_frame(fixed.grid, moving.grid) else 'centres'
    shifts = [np.zeros(3)] if start == 'headers' else _centre_shifts(fixed, moving)
    results = []
    for shift in shifts:
        transform = simpleitk().Euler3DTransform()
        transform.SetCenter((fixed.grid.centre_mm * RAS_TO_LPS).tolist())
        transform.SetTranslation((shift * RAS_TO_LPS).tolist())
        value = 0.0
        try:
            for spacing_mm in RIGID_LEVELS_MM:
                transform, value = _optimise(fixed, moving, transform, spacing_mm)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            results.append((np.inf, reason))
        else:
            results.append((value, transform))
    best = min(results, key=lambda result: result[0])
    if isinstance(best[1], str):
        raise RegistrationFailedError(best[1])
    return best[1], start


def _centre_shifts(fixed: Pyramid, moving: Pyramid) -> list[np.ndarray]:
    """[3] mm (R, A, S) between the centres of the volumes, and between those of the bodies."""
    shifts = [moving.grid.centre_mm - fixed.grid.centre_mm]
    centres = []
    for pyramid in (fixed, moving):
        image, grid = pyramid.level(RIGID_LEVELS_MM[0])
        mask = body_mask(image)
        if not mask.any():
            return shifts
        centres.append(grid.points()[mask].mean(0))
    return [*shifts, centres[1] - centres[0]]


def _optimise(fixed: Pyramid, moving: Pyramid, start: Any, spacing_mm: float) -> tuple[Any, float]:
    sitk = simpleitk()
    reference, grid = fixed.level(spacing_mm)
    phase, phase_grid = moving.level(spacing_mm)
    near_body = body_mask(reference).astype(np.uint8)
    for axis, edge in enumerate(grid.spacing_mm):
        near_body = ndimage.maximum_filter1d(
            near_body, 2 * round(_MASK_MARGIN_MM / edge) + 1, axis, mode='constant'
        )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInterpolator(sitk.sitkLinear)
    if near_body.any():
        method.SetMetricFixedMask(to_image(near_body, grid))
    if reference.size > _MAX_SAMPLES:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(_MAX_SAMPLES / reference.size, _SEED)
    method.SetOptimizerAsRegularStepGradientDescent(
        _FIRST_STEP_MM, _LAST_STEP_MM, _MAX_STEPS, 0.5, 1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, True)
    images = (
        to_image(np.clip(reference, *WINDOW_HU), grid),
        to_image(np.clip(phase, *WINDOW_HU), phase_grid),
    )
    method.Execute(*images)
    return sitk.Euler3DTransform(transform), float(method.GetMetricValue())


@one_thread()
def register_deformable(fixed: Pyramid, moving: Pyramid, rigid: Any) -> tuple[np.ndarray, Grid]:
    """Refines a rigid transform.

    Returns:
        The whole displacement, rigid part included, as a field [d, h, w, 3] float32 in mm
        (R, A, S) at about 4 mm per voxel, and its grid, which covers the reference.

    Raises:
        RegistrationFailedError: the filter refused.
    """
    field: np.ndarray | None = None
    grid = fixed.grid
    for spacing_mm in DEMONS_LEVELS_MM:
        previous = None if field is None else (field, grid)
        reference, grid = fixed.level(spacing_mm)
        image = to_image(*moving.level(spacing_mm))
        phase = resample(image, grid, rigid, fill=AIR_HU)
        covered = resample(ones_like(image), grid, rigid, fill=0, is_nearest=True) > 0
        phase = np.where(covered, phase, reference)  # no data, no force
        field = _demons(reference, phase, grid, previous)
    assert field is not None
    # One voxel more in front and two at the end: centres of blocks do not reach the borders.
    padded = grid.padded(1, 2)
    affine = padded.affine.astype(np.float32).astype(np.float64)  # as a NIfTI file keeps it
    padded = Grid(padded.shape, affine)
    smooth = np.pad(field, ((1, 2), (1, 2), (1, 2), (0, 0)), mode='edge')
    rigid_field = displacement_of(rigid, padded)
    # y = T(x + u(x)) and T is affine: y - x = (T(x) - x) + u + (M - 1) u
    matrix = np.diag(RAS_TO_LPS) @ np.array(rigid.GetMatrix()).reshape(3, 3) @ np.diag(RAS_TO_LPS)
    total = rigid_field + np.einsum('...j,ij->...i', smooth, matrix)
    total = np.rint(total / FIELD_STEP_MM) * FIELD_STEP_MM  # finer digits would swell the file
    return total.astype(np.float32), padded


def ones_like(image: Any) -> Any:
    """An image of ones on the grid of another: what it covers."""
    return simpleitk().Cast(image, simpleitk().sitkUInt8) * 0 + 1


def _demons(
    reference: np.ndarray,
    phase: np.ndarray,
    grid: Grid,
    previous: tuple[np.ndarray, Grid] | None,
) -> np.ndarray:
    sitk = simpleitk()
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS_ITERATIONS)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations([SMOOTHING_MM / edge for edge in grid.spacing_mm[::-1]])
    images = [to_image(np.clip(i, *DEMONS_WINDOW_HU), grid) for i in (reference, phase)]
    if previous is not None:
        start = np.pad(previous[0], ((1, 2), (1, 2), (1, 2), (0, 0)), mode='edge')
        coarse = field_transform(start, previous[1].padded(1, 2))
        images.append(to_image(displacement_of(coarse, grid), grid))
    try:
        out = demons.Execute(*images)
    except RuntimeError as error:
        raise RegistrationFailedError(str(error).strip().splitlines()[-1].strip()) from error
    return sitk.GetArrayFromImage(out) * RAS_TO_LPS
