"""Which alignment of a phase is kept: the method's, unless an earlier step was better."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from maxquery_jax.data.registration.grids import Grid
from maxquery_jax.data.registration.quality import Likeness, compare

LEAST_COVERAGE = 0.05  # of the body, below which there is nothing to compare
KEPT_COVERAGE = 0.8  # of the headers' coverage, below which a registration lost the body
WORSE = 0.01  # relative loss of mutual information that counts as worse


@dataclasses.dataclass(eq=False)
class Candidate:
    """One way to align a phase.

    Attributes:
        name: 'headers', 'rigid', 'deformable', 'transforms' or 'command'.
        coarse: [d, h, w] HU on the grid where quality is judged.
        covered: the same grid, where the phase has data.
        full: gives [D, H, W] int16 on the grid of the reference.
        save: writes the transform and gives its path; None where there is none of ours.
        field: gives the displacement on a grid; None where it is not known.
        is_fine: whether folding may hide between the voxels of the coarse grid.
        likeness: agreement with the reference, once judged.
    """

    name: str
    coarse: np.ndarray
    covered: np.ndarray
    full: Callable[[], np.ndarray]
    save: Callable[[], str] | None = None
    field: Callable[[Grid], np.ndarray] | None = None
    is_fine: bool = False
    likeness: Likeness | None = None

    @property
    def information(self) -> float:
        """Mutual information with the reference; 0 where nothing can be compared."""
        assert self.likeness is not None
        value = self.likeness.mutual_information
        return value if math.isfinite(value) else 0.0

    def scores(self) -> dict[str, float | None]:
        """The likeness for JSON, which knows no NaN."""
        assert self.likeness is not None
        values = dataclasses.asdict(self.likeness)
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def choose(
    candidates: Sequence[Candidate], reference: np.ndarray, body: np.ndarray
) -> tuple[Candidate, str]:
    """Judges candidates in one common region and takes the last that is not worse than before it.

    Args:
        candidates: the headers' alignment, then the steps of a method, its result last.
        reference: [d, h, w] HU.
        body: its mask.

    Returns:
        The one to keep, and a line for the user if that is not the last.
    """
    where = body if body.any() else np.ones_like(body)
    shown = {c.name: float(c.covered[where].mean()) for c in candidates}
    region = np.ones_like(body)
    for candidate in candidates:
        if shown[candidate.name] >= LEAST_COVERAGE:
            region &= candidate.covered
    for candidate in candidates:
        common = shown[candidate.name] >= LEAST_COVERAGE
        candidate.likeness = compare(
            reference,
            candidate.coarse,
            body=body,
            covered=candidate.covered,
            region=region if common else candidate.covered,
        )
    best = candidates[0]
    for candidate in candidates[1:]:
        if _is_at_least(candidate, best, shown, candidates[0]):
            best = candidate
    result = candidates[-1]
    if best is result:
        return best, ''
    if shown[result.name] < KEPT_COVERAGE * shown[candidates[0].name]:
        reason = f'shows {shown[result.name]:.0%} of the body'
    else:
        reason = f'mutual information {result.information:.3f} against {best.information:.3f}'
    return best, f'{result.name} is worse than {best.name} ({reason}); kept {best.name}'


def _is_at_least(
    candidate: Candidate, best: Candidate, shown: dict[str, float], headers: Candidate
) -> bool:
    if shown[candidate.name] < LEAST_COVERAGE:
        return False
    if shown[best.name] < LEAST_COVERAGE:
        return True
    if shown[candidate.name] < KEPT_COVERAGE * shown[headers.name]:
        return False
    return candidate.information >= (1 - WORSE) * best.information
