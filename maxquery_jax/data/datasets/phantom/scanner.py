"""What the scanner adds to the phantom: blur, correlated noise, streaks, integer HU."""

import dataclasses

import numpy as np
from scipy import ndimage

from maxquery_jax.data.datasets.phantom.canvas import Grid

HU_RANGE = (-1024, 3071)
REFERENCE_VOXEL_MM3 = 0.75 * 0.75 * 5.0
NOISE_EXPONENT = 0.22  # noise falls more slowly than with independent samples: it is correlated
ATTENUATION = 0.0045  # per mm of water, of the noise amplitude


@dataclasses.dataclass(frozen=True)
class Scanner:
    """One patient's scanner settings.

    Attributes:
        blur_mm: in-plane point spread, standard deviation.
        grain_mm: correlation length of the noise, standard deviation of its kernel.
        noise_hu: noise at `REFERENCE_VOXEL_MM3` in an average patient.
        streaks: strength of horizontal streaks where the patient is wide.
    """

    blur_mm: float
    grain_mm: float
    noise_hu: float
    streaks: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draws kernel and dose."""
    sharpness = rng.random()  # 0 soft, 1 sharp kernel: less blur and more noise
    return Scanner(
        blur_mm=0.85 - 0.35 * sharpness,
        grain_mm=0.8 - 0.3 * sharpness,
        noise_hu=float((9 + 5 * sharpness) * np.exp(rng.normal(0, 0.15))),
        streaks=float(rng.uniform(0.0, 1.0)),
    )


def acquire(hu: np.ndarray, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Scans a noise-free volume.

    Args:
        hu: [D, H, W] float32.
        grid: its geometry.
        scanner: settings.
        rng: noise of this scan.

    Returns:
        [D, H, W] int16 HU.
    """
    sigma = [0.0, scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[2]]
    image = _blur(hu, sigma)
    water = np.maximum(image * np.float32(1e-3) + 1, 0)
    across = water.sum(2) * np.float32(grid.spacing_mm[2])  # [D, H] mm of water along x
    through = water.sum(1) * np.float32(grid.spacing_mm[1])  # [D, W] along y
    amplitude = np.exp(ATTENUATION * (across - 250))[:, :, None] * 0.5
    amplitude = amplitude + np.exp(ATTENUATION * (through - 180))[:, None, :] * 0.5
    volume = float(np.prod(grid.spacing_mm))
    level = scanner.noise_hu * (REFERENCE_VOXEL_MM3 / volume) ** NOISE_EXPONENT
    image = image + _grain(rng, hu.shape, grid, scanner) * (amplitude * np.float32(level))
    streak = ndimage.gaussian_filter1d(
        rng.standard_normal(hu.shape, dtype=np.float32), 60 / grid.spacing_mm[2], axis=2
    )
    strength = np.maximum(np.exp(ATTENUATION * (across - 300)) - 1, 0)[:, :, None]
    image += streak * strength * np.float32(scanner.streaks * level * 4)
    return np.clip(np.rint(image), *HU_RANGE).astype(np.int16)


def _blur(volume: np.ndarray, sigma) -> np.ndarray:
    for axis, width in enumerate(sigma):
        if width > 0.25:  # below, the kernel is one voxel
            volume = ndimage.gaussian_filter1d(volume, width, axis=axis, truncate=3)
    return volume


def _grain(rng, shape, grid: Grid, scanner: Scanner) -> np.ndarray:
    """Unit-variance noise with the mid-frequency peak of filtered back-projection."""
    white = rng.standard_normal(shape, dtype=np.float32)
    steps = grid.spacing_mm
    fine = _blur(white, [0, scanner.grain_mm / steps[1], scanner.grain_mm / steps[2]])
    wide = 2.5 * scanner.grain_mm
    if wide / min(steps[1:]) > 0.5:  # on coarse voxels the noise is white already
        fine = fine - 0.6 * _blur(white, [0, wide / steps[1], wide / steps[2]])
    return fine / np.float32(max(float(fine.std()), 1e-6))
