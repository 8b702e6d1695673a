"""One phantom case: image in every contrast phase, organ map and tumours."""

import dataclasses

import numpy as np

from maxquery_jax.data.datasets.phantom import atlas, fields, organs, scanner, tissues
from maxquery_jax.data.datasets.phantom.canvas import Canvas, Grid, Motion
from maxquery_jax.data.datasets.phantom.lesions import Lesion, paint_lesion
from maxquery_jax.data.datasets.phantom.patient import Patient, sample_patient
from maxquery_jax.data.datasets.phantom.placement import plan_lesions
from maxquery_jax.errors import UserError

MIN_SIZE = 8  # voxels per axis
SPACING_LIMITS_MM = (0.3, 12.0)
CENTRE_JITTER_MM = 6.0


@dataclasses.dataclass(frozen=True)
class PhantomCase:
    """A generated case; axes are (z, y, x) and grow towards superior, anterior, right.

    Attributes:
        image: [D, H, W, P] int16 HU, one channel per phase.
        organs: [D, H, W] uint8 ids of `tissues.ORGANS` (position + 1); tumours count to their
            host.
        lesions: [D, H, W] uint8, number in `findings` (position + 1), 0 for none.
        findings: the tumours.
        grid: geometry in patient space.
        phases: names of the channels.
        reference_phase: the phase that `organs` and `lesions` refer to.
    """

    image: np.ndarray
    organs: np.ndarray
    lesions: np.ndarray
    findings: tuple[Lesion, ...]
    grid: Grid
    phases: tuple[str, ...]
    reference_phase: str


def generate_case(
    *,
    seed: int,
    index: int,
    shape_zyx: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    phases: tuple[str, ...] = ('venous',),
    region: str = 'abdomen',
    tumours: tuple[str, ...] = (),
    reference_phase: str | None = None,
) -> PhantomCase:
    """Generates the case of (seed, index); a pure function of its arguments.

    Args:
        seed: of the cohort.
        index: of the patient.
        shape_zyx: voxels.
        spacing_mm: (z, y, x).
        phases: contrast phases out of `tissues.PHASES`; each becomes a channel.
        region: what the volume is centred on, a key of `atlas.REGIONS`.
        tumours: types out of `tumours.TYPES`.
        reference_phase: the labels' phase; by default venous if present, else the first.

    Raises:
        UserError: for an unknown phase, region or tumour type, an unusable shape or spacing, or
            if a tumour's host is outside the volume.
    """
    reference_phase = check_arguments(shape_zyx, spacing_mm, phases, region, reference_phase)
    patient = sample_patient(seed, index)
    grid = field_of_view(patient, shape_zyx, spacing_mm, region)
    patient, findings = plan_lesions(patient, grid, tuple(tumours))
    keep = ('liver', 'rigid', *(lesion.host for lesion in findings))
    settings = scanner.draw_scanner(patient.stream('scanner'))
    channels, labels = [], None
    for phase in phases:
        motion = Motion() if phase == reference_phase else draw_motion(patient, phase)
        position = tissues.phase_position(phase, patient.timing)
        canvas = Canvas(grid, patient, position, motion, keep=keep)
        organs.paint_patient(canvas)
        lesions = np.zeros(grid.shape, np.uint8)
        for number, lesion in enumerate(findings, 1):
            paint_lesion(canvas, lesion, number, lesions)
        noise = patient.stream(f'noise/{phase}')
        channels.append(scanner.acquire(canvas.hu, grid, settings, noise))
        if phase == reference_phase:
            labels = canvas.organs, lesions
    assert labels is not None
    return PhantomCase(
        image=np.stack(channels, -1),
        organs=labels[0],
        lesions=labels[1],
        findings=tuple(findings),
        grid=grid,
        phases=tuple(phases),
        reference_phase=reference_phase,
    )


def field_of_view(patient: Patient, shape_zyx, spacing_mm, region: str) -> Grid:
    """The volume around the region, off-centre by a few mm as in practice."""
    centre = atlas.REGIONS[region] * patient.scale_xyz
    centre = centre + patient.stream('field of view').uniform(-1, 1, 3) * CENTRE_JITTER_MM
    return Grid.centred(centre, shape_zyx, spacing_mm)


def draw_motion(patient: Patient, phase: str) -> Motion:
    """Breathing shift (mostly along z) and smooth deformation of one phase."""
    rng = patient.stream(f'motion/{phase}')
    shift = np.clip(rng.normal(0, (0.8, 1.2, 3.0)), (-2, -3, -7), (2, 3, 7))
    lattices = tuple(fields.Lattice(rng, 40, 20) for _ in range(3))
    return Motion(tuple(float(mm) for mm in shift), lattices, 0.9)


def check_arguments(shape_zyx, spacing_mm, phases, region, reference_phase) -> str:
    """Raises UserError for unusable arguments of `generate_case`; returns the reference phase."""
    tissues.check_phases(tuple(phases))
    if region not in atlas.REGIONS:
        raise UserError(f'unknown phantom region {region!r}; use one of {", ".join(atlas.REGIONS)}')
    if len(shape_zyx) != 3 or any(size != int(size) or size < MIN_SIZE for size in shape_zyx):
        raise UserError(
            f'phantom shape_zyx {tuple(shape_zyx)} must be three integers of at least {MIN_SIZE}'
        )
    low, high = SPACING_LIMITS_MM
    if len(spacing_mm) != 3 or not all(low <= mm <= high for mm in spacing_mm):
        raise UserError(
            f'phantom spacing_mm {tuple(spacing_mm)} must be three values of {low} to {high} mm'
        )
    if reference_phase is None:
        return 'venous' if 'venous' in phases else phases[0]
    if reference_phase not in phases:
        raise UserError(
            f'phantom reference_phase {reference_phase!r} is not among the phases {tuple(phases)}'
        )
    return reference_phase
