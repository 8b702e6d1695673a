"""A scan on its way to the model's grid and a prediction on its way back."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from maxquery_jax.data import orientation as orientation_lib
from maxquery_jax.data import preprocess, volumes
from maxquery_jax.data.findings import FileError
from maxquery_jax.data.hounsfield import judge_values
from maxquery_jax.data.nifti import (
    AIR_HU,
    Volume,
    from_canonical,
    to_canonical,
)
from maxquery_jax.data.nifti_header import Header, corner_distance
from maxquery_jax.data.orientation import Orientation
from maxquery_jax.data.scan import ReadOptions, to_hu
from maxquery_jax.errors import UserError
from maxquery_jax.inference.cases import Case

# Channels of a case may differ by the rounding of their headers, in voxels (as in `data.scan`).
SAME_PLACE_VOXELS = 0.05

Size = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Geometry of a scan, known from its header alone.

    Attributes:
        header: of the first channel.
        orientation: file order to canonical order.
        shape: (D, H, W) canonical and right-angled; differs from the file's only under shear.
        spacing_mm: (z, y, x) of that grid.
        model_shape: (D, H, W) at the model's spacing.
    """

    header: Header
    orientation: Orientation
    shape: Size
    spacing_mm: tuple[float, float, float]
    model_shape: Size

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel of the file."""
        return float(abs(np.linalg.det(self.orientation.affine[:3, :3]))) / 1000


def read_grid(case: Case, model_spacing_mm: Sequence[float], options: ReadOptions) -> Grid:
    """Reads the headers of a case.

    Raises:
        UserError: a header is unusable, or the channels lie on different grids.
    """
    headers = [
        volumes.read_header(
            path,
            series=options.series,
            allow=options.allow,
            assume_orientation=options.assume_orientation,
        )
        for path in case.images
    ]
    first = headers[0]
    orientation = orientation_lib.find_orientation(first.affine, first.shape)
    for header in headers[1:]:
        _require_same_place(header, first, orientation)
    shape = orientation.shape
    if orientation.is_sheared:
        shape, _ = orientation_lib.rectified_grid(orientation)
    spacing = orientation.spacing_mm
    model_shape = preprocess.resampled_shape(shape, spacing, model_spacing_mm)
    return Grid(first, orientation, shape, spacing, model_shape)


def _require_same_place(header: Header, first: Header, orientation: Orientation) -> None:
    """Channels must lie on one grid; they may store it in another axis order."""
    other = orientation_lib.find_orientation(header.affine, header.shape)
    if other.shape != orientation.shape:
        problem = f'has shape {other.shape} (z, y, x), {first.path} has {orientation.shape}'
    else:
        distance = corner_distance(other.affine, orientation.affine, orientation.shape)
        if distance <= SAME_PLACE_VOXELS * min(orientation.spacing_mm):
            return
        problem = f'lies up to {distance:.3g} mm from {first.path}'
    raise UserError(f'{header.path}: {problem}; register the phases of a case to one grid')


def read_scan(
    case: Case, grid: Grid, model_spacing_mm: Sequence[float], options: ReadOptions
) -> tuple[np.ndarray, list[str], list[str]]:
    """Reads the channels of a case onto the model's grid.

    Args:
        case: its files are read one after the other.
        grid: from `read_grid`.
        model_spacing_mm: (z, y, x).
        options: how tolerant reading is.

    Returns:
        [d, h, w, P] int16 HU, SHA-256 of each file, and warnings.

    Raises:
        UserError: a file is damaged, or is not the one the store was prepared from.
    """
    image = None
    hashes, warnings = [], []
    for channel, path in enumerate(case.images):
        volume = volumes.read_image(
            path,
            series=options.series,
            allow=options.allow,
            nan_policy=options.nan_policy,
            assume_orientation=options.assume_orientation,
            max_bytes=options.max_bytes,
        )
        hashes.append(volume.sha256)
        warnings += [*volume.warnings, *_judge_hu(volume, options)]
        if case.sha256 and case.sha256[channel] not in ('', volume.sha256):
            raise UserError(
                f'{path}: changed since the store was prepared; restore it or prepare again'
            )
        array, _ = to_canonical(volume)
        if grid.orientation.is_sheared:
            array = orientation_lib.rectify(array, grid.orientation, order=1, fill=float(AIR_HU))
        array = preprocess.resample_image(to_hu(array), grid.spacing_mm, model_spacing_mm)
        del volume
        if len(case.images) == 1:
            return array[..., None], hashes, warnings
        if image is None:
            image = np.empty((*grid.model_shape, len(case.images)), np.int16)
        image[..., channel] = array
    assert image is not None
    return image, hashes, warnings


def _judge_hu(volume: Volume, options: ReadOptions) -> list[str]:
    """A line if the values do not look like HU; such a scan is rarely predicted well.

    Raises:
        FileError: rounding to 16-bit HU would destroy them.
    """
    path = volume.header.path
    issues = judge_values(volume.minimum, volume.maximum, volume.is_fractional)
    for issue in issues:
        if issue.severity == 'error' and issue.check not in options.allow:
            raise FileError(path, issue)
    return [f'{path}: {issue}' for issue in issues]


def to_scan_grid(
    label: np.ndarray,
    scores: Mapping[str, np.ndarray],
    grid: Grid,
    model_spacing_mm: Sequence[float],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Brings a prediction from the model's grid to the scan's canonical grid.

    Args:
        label: [d, h, w] uint8.
        scores: name to [d, h, w] float16.
        grid: of the scan.
        model_spacing_mm: (z, y, x).

    Returns:
        Label and scores on the file's own voxels in canonical order [D, H, W]; the arguments
        themselves where the grids agree.
    """
    spacings = (model_spacing_mm, grid.spacing_mm)
    label = preprocess.resample_label(label, *spacings, shape=grid.shape)
    scores = {
        name: preprocess.resample_image(
            values, *spacings, shape=grid.shape, order=1, coarse_order=1
        )
        for name, values in scores.items()
    }
    if grid.orientation.is_sheared:
        label = orientation_lib.unrectify(label, grid.orientation, order=0, fill=0)
        for name, values in scores.items():
            single = values.astype(np.float32)  # scipy does not interpolate half precision
            back = orientation_lib.unrectify(
                single, grid.orientation, order=1, fill=float(single.min())
            )
            scores[name] = back.astype(np.float16)
    return label, scores


def to_file_order(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A view [i, j, k] of a canonical array [D, H, W] along the file's own axes."""
    return from_canonical(array, grid.orientation)
