"""Names, contrast phases and attenuation of the phantom's tissues (typical adult, 120 kVp)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.errors import UserError

PHASES = ('noncontrast', 'arterial_early', 'arterial_late', 'venous', 'delay')

ORGANS = tuple(concept.name for concept in TAXONOMY if concept.kind == 'organ')  # id: position + 1
ORGAN_ID = {name: number for number, name in enumerate(ORGANS, 1)}
PARENT = {'hepatic_vessel': 'liver'}  # what an unannotated structure counts as, if annotated


@dataclasses.dataclass(frozen=True)
class Tissue:
    """Attenuation of one tissue.

    Attributes:
        hu: mean HU in the five phases of `PHASES`.
        grain: standard deviation in HU of the fine (about 6 mm) texture.
        patches: the same for the coarse (about 18 mm) texture.
    """

    hu: tuple[float, ...]
    grain: float = 2.0
    patches: float = 1.5


def _constant(hu: float, grain: float = 2.0, patches: float = 1.0) -> Tissue:
    return Tissue((hu,) * 5, grain, patches)


TISSUES = {
    'air': _constant(-1000, 0, 0),
    'gas': _constant(-960, 8, 0),
    'lung': _constant(-850, 18, 14),
    'skin': _constant(30, 4),
    'fat': _constant(-102, 5, 4),
    'visceral_fat': _constant(-98, 7, 5),
    'muscle': Tissue((52, 54, 58, 64, 64), 5, 4),
    'cortical_bone': _constant(650, 60, 30),
    'cancellous_bone': _constant(190, 35, 15),
    'disc': _constant(85, 8),
    'cartilage': _constant(95, 12),
    'spinal_canal': _constant(28, 4),
    'liver': Tissue((58, 62, 78, 110, 96), 2.5, 2.0),
    'hepatic_vein': Tissue((42, 44, 62, 165, 122), 1, 0),
    'portal_vein': Tissue((42, 50, 135, 170, 124), 1, 0),
    'mesenteric_vein': Tissue((42, 48, 110, 165, 122), 1, 0),
    'artery': Tissue((42, 320, 260, 155, 116), 2, 0),
    'vena_cava': Tissue((42, 48, 105, 145, 118), 3, 3),
    'iliac_vein': Tissue((42, 44, 55, 105, 112), 3, 2),
    'heart_blood': Tissue((42, 290, 230, 150, 116), 3, 2),
    'myocardium': Tissue((46, 85, 110, 108, 92), 3, 2),
    'spleen': Tissue((48, 105, 132, 122, 102), 2.5, 2),
    'spleen_mottle': Tissue((0, 30, 12, 0, 0), 0, 0),  # early heterogeneous perfusion, +- HU
    'renal_cortex': Tissue((34, 150, 190, 182, 155), 4, 2),
    'renal_medulla': Tissue((32, 55, 95, 168, 160), 4, 2),
    'renal_pelvis': Tissue((5, 5, 5, 12, 260), 2, 0),
    'renal_sinus_fat': _constant(-70, 8),
    'pancreas': Tissue((42, 84, 114, 96, 78), 5, 3),
    'pancreatic_duct': _constant(14, 1, 0),
    'bile': _constant(9, 2, 1),
    'gall_bladder_wall': Tissue((34, 44, 55, 64, 60), 2, 1),
    'adrenal': Tissue((24, 60, 78, 72, 55), 3, 0),
    'stomach_wall': Tissue((40, 62, 86, 88, 78), 3, 2),
    'bowel_wall': Tissue((38, 60, 86, 94, 80), 4, 2),
    'colon_wall': Tissue((36, 52, 72, 82, 74), 3, 2),
    'esophagus': Tissue((38, 48, 62, 70, 66), 3, 1),
    'fluid': _constant(18, 5, 4),
    'chyme': _constant(34, 16, 8),
    'urine': Tissue((4, 4, 4, 6, 120), 2, 0),
    'bladder_wall': Tissue((34, 42, 52, 64, 62), 2, 1),
    'prostate': Tissue((40, 55, 75, 88, 84), 5, 5),
}


def phase_position(phase: str, timing: float) -> float:
    """Position on the phase axis 0..4 of a scan whose contrast timing is off by `timing` phases.

    The non-contrast scan has no timing; the others stay between early arterial and delay.
    """
    index = PHASES.index(phase)
    return 0.0 if index == 0 else float(np.clip(index + timing, 1, 4))


def at_phase(values: Sequence[float] | np.ndarray, position: float) -> float:
    """Linear interpolation of a five-phase row at a position of `phase_position`."""
    return float(np.interp(position, np.arange(5), values))


def check_phases(phases: tuple[str, ...]) -> None:
    """Raises UserError if a phase is unknown, repeated or if there is none."""
    unknown = [phase for phase in phases if phase not in PHASES]
    if unknown or not phases or len(set(phases)) != len(phases):
        raise UserError(
            f'phantom phases {tuple(phases)} must be distinct names out of {PHASES}; '
            'change `phases`'
        )
