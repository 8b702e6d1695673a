"""Files of predicted cases and of their truth, and how they are read."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxquery_jax.data import truth
from maxquery_jax.data.nifti import Volume, read_image, read_label
from maxquery_jax.errors import UserError
from maxquery_jax.report.labels import LabelTable, map_labels

GEOMETRY_TOLERANCE_MM = 0.01
"""Largest distance of a voxel's place in two files that still counts as the same grid."""


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """Files of one predicted case.

    Attributes:
        case: id, the file name without suffix.
        segmentation: `X_seg.nii.gz`.
        scores: score name to anomaly map; the first is the one of `X_ood.nii.gz`.
        info: content of `X.json`.
        label: truth, None when not given.
        image: CT, None when not given.
        rules: how the truth becomes class ids, where the store says so; else by `label_map`.
    """

    case: str
    segmentation: pathlib.Path
    scores: Mapping[str, pathlib.Path]
    info: Mapping[str, Any]
    label: pathlib.Path | None = None
    image: pathlib.Path | None = None
    rules: truth.TruthRules | None = None


@dataclasses.dataclass(frozen=True)
class PredictionSet:
    """Cases that were predicted with one set of classes and scores.

    Attributes:
        cases: sorted by id.
        table: classes, including OOD ones that only occur in the truth.
        label_map: raw id of the truth to class id.
        scores: score names, the default one first.
        name: what the set is called in tables.
        folder: where the predictions are.
        unused_labels: truth files without a prediction.
        known_cases: ids in the predictions, the truth and the store, evaluated or not.
    """

    cases: tuple[CaseFiles, ...]
    table: LabelTable
    label_map: Mapping[int, int]
    scores: tuple[str, ...]
    name: str
    folder: pathlib.Path
    unused_labels: int = 0
    known_cases: frozenset[str] = frozenset()


def read_truth(case: CaseFiles, predictions: PredictionSet) -> tuple[np.ndarray, Volume]:
    """Truth of a case as class ids (uint8) and its volume.

    Raises:
        UserError: there is no truth, or it holds ids outside the label map.
    """
    if case.label is not None and case.rules is not None and case.label.exists():
        return truth.read_truth(case.label, case.rules)
    if case.label is None or not case.label.is_file():
        raise UserError(
            f'case {case.case} has no label {case.label or ""}; give the folder with --labels'
        )
    volume = read_label(case.label)
    fix = "add them to the --label_map; one of a store's manifest.json also splits joint labels"
    return map_labels(volume.array, predictions.label_map, case.label, fix), volume


def read_segmentation(case: CaseFiles, table: LabelTable) -> tuple[np.ndarray, Volume]:
    """Predicted class ids (uint8) of a case and its volume.

    Raises:
        UserError: it holds an id that is no class.
    """
    volume = read_label(case.segmentation)
    identity = {i: i for i in (*table.ids('background'), *table.predicted_ids)}
    fix = 'the file does not fit "labels" of its .json; predict again'
    return map_labels(volume.array, identity, case.segmentation, fix), volume


def read_score(case: CaseFiles, name: str) -> Volume:
    """Anomaly map of a case.

    Raises:
        UserError: it is damaged or holds NaN or infinite values.
    """
    return read_image(case.scores[name])


def check_same_grid(first: Volume, second: Volume) -> None:
    """Refuses to compare voxels of different places.

    Raises:
        UserError: shapes differ, or a corner is further apart than the tolerance.
    """
    paths = f'{first.header.path} and {second.header.path}'
    fix = 'evaluate in the geometry of the input'
    if first.array.shape != second.array.shape:
        raise UserError(f'{paths} have shapes {first.array.shape} and {second.array.shape}; {fix}')
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(first.array.shape) - 1)
    difference = first.header.affine - second.header.affine
    distance = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
    if not distance <= GEOMETRY_TOLERANCE_MM:
        raise UserError(f'{paths} lie up to {distance:.3g} mm apart; {fix}')
