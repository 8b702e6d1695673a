"""The findings of a scan, as they stand in its record (X.json)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.inference.lesions import Lesion, LesionFinder
from maxquery_jax.inference.memory import MEASURED_VOXELS
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.scan import Grid
from maxquery_jax.inference.scores import CaseScorer

FORMAT = 'maxquery_jax/prediction'
VERSION = 1


def describe_case(
    label: np.ndarray,
    scores: Mapping[str, np.ndarray],
    grid: Grid,
    model: LoadedModel,
    min_lesion_ml: float,
) -> dict[str, Any]:
    """Measures a prediction on the scan's own voxels, slab by slab.

    Args:
        label: [D, H, W] uint8 in canonical order.
        scores: name to [D, H, W] float16; the first is the primary score.
        grid: of the scan.
        model: names and roles of the classes.
        min_lesion_ml: smaller tumour components are not listed.

    Returns:
        JSON values: `shape`, `spacing_mm` (z, y, x), `volumes_ml` (class name to ml, without
        background), `lesions`, `case_ood_score`, `case_ood_fallback` (null, 'organ' or
        'volume': the region used where no tumour was predicted), and `scores` (name to case
        score, fallback, smallest and largest value).
    """
    finder = LesionFinder(model.tumour_ids, grid.orientation.affine, grid.voxel_ml)
    scorers = {name: CaseScorer(model.class_groups) for name in scores}
    primary = next(iter(scores))
    for start, stop in _slabs(label.shape):
        part = label[start:stop]
        finder.update(part, scores[primary][start:stop])
        for name, scorer in scorers.items():
            scorer.update(part, scores[name][start:stop])
    cases = {name: scorer.result() for name, scorer in scorers.items()}
    voxels = scorers[primary].voxels
    names = {record['id']: record['name'] for record in model.predicted_labels}
    return {
        'shape': list(label.shape),
        'spacing_mm': [_round(edge) for edge in grid.orientation.spacing_mm],
        'volumes_ml': {
            name: _round(float(voxels[i]) * grid.voxel_ml) for i, name in names.items() if i > 0
        },
        'lesions': [_lesion_json(found, names) for found in finder.result(min_lesion_ml)],
        'case_ood_score': cases[primary].value,
        'case_ood_fallback': cases[primary].fallback,
        'primary_score': primary,
        'scores': {
            name: {
                'case': case.value,
                'fallback': case.fallback,
                'min': float(scores[name].min()),
                'max': float(scores[name].max()),
            }
            for name, case in cases.items()
        },
    }


def _slabs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Splits axis 0 into ranges of about `MEASURED_VOXELS` voxels."""
    depth = max(1, MEASURED_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])


def _lesion_json(lesion: Lesion, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        'class': names[lesion.class_id],
        'class_id': lesion.class_id,
        'volume_ml': _round(lesion.volume_ml),
        'voxels': lesion.voxels,
        'centre_mm': [_round(value) for value in lesion.centre_mm],
        'class_volumes_ml': {names[i]: _round(ml) for i, ml in lesion.class_volumes_ml.items()},
        'mean_score': lesion.mean_score,
        'max_score': lesion.max_score,
    }


def _round(value: float) -> float:
    """Drops the digits that sums of floats add: nothing below a nanolitre or nanometre counts."""
    return round(value, 6)
