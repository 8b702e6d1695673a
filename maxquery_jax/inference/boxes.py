"""Relaxed 3D boxes as ZePT's prompts (ZePT Tab. 5): their file, their place, the model for them.

A file of boxes is JSON, `{"CASE": [[i0, j0, k0, i1, j1, k1], ...], ...}`: half-open voxel indices
along the axes of the case's own file, as a viewer shows them. On the model's grid the boxes, grown
by the margin of the run, become a mask, which every tile carries as one more channel. A tile that
no box reaches attends everywhere, as a training patch without a tumour does.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maxquery_jax.data import truth, volumes
from maxquery_jax.data.nifti_header import Header
from maxquery_jax.data.orientation import rectified_grid
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.store import Manifest, PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.inference.cases import Case, PathLike
from maxquery_jax.inference.ensemble import Ensemble, combine
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.scan import Grid
from maxquery_jax.models.zept import ZePT
from maxquery_jax.ops.prompts import boxes_from_mask

TRUTH = 'truth'
"""In place of a file: the boxes of the tumours in the labels of a split."""

Box = tuple[int, int, int, int, int, int]
Boxes = tuple[Box, ...]
BoxSource = Callable[[Case], Boxes]
"""The boxes of a scan along its file's own axes."""

_FORM = 'it must be {"CASE": [[i0, j0, k0, i1, j1, k1], ...], ...}, six voxel indices per box'
_ROUNDING = 1e-4  # of a voxel: edges that coincide may differ by the rounding of affines


def with_boxes(model: LoadedModel) -> LoadedModel:
    """The same model, whose tiles carry a prompt as their last channel.

    Args:
        model: a ZePT of stage II, however it was trained, or an ensemble of such.

    Raises:
        UserError: it is not, or its queries take no prompts.
    """
    if isinstance(model, Ensemble):
        return combine([with_boxes(member) for member in model.members])
    network = model.network
    if not isinstance(network, ZePT) or network.stage != 2:
        raise UserError(
            f'--boxes needs a ZePT after stage II, {model.description} is none; drop --boxes or '
            'name another --model'
        )
    if not network.options.qrd:
        raise UserError(
            f'{model.description} was trained without the decoder that prompts guide (qrd); drop '
            '--boxes'
        )
    return dataclasses.replace(model, prompt_margin=float(network.options.box_margin))


def open_boxes(
    source: PathLike,
    cases: Sequence[Case],
    *,
    own: Sequence[Case],
    store: str,
    is_split: bool,
    reading: ReadOptions,
) -> BoxSource:
    """Checks where boxes come from, as far as that goes without reading voxels.

    Args:
        source: a JSON file, or `TRUTH`.
        cases: all scans; the file names no others.
        own: those of them that are predicted here, whose boxes must lie inside.
        store: that the model was trained on.
        is_split: whether the scans are a split of it.
        reading: how scans are read that do not say it themselves.

    Raises:
        UserError: the file or a label is missing or malformed, a case of the file is no scan, or a
            box lies outside its scan.
    """
    if os.fspath(source) == TRUTH:
        if not is_split:
            raise UserError(
                '--boxes=truth takes the boxes of the labels of a split: give --split, or a JSON '
                'file of boxes'
            )
        return _TruthBoxes.of(store, own, reading)
    path = pathlib.Path(source)
    content = read_json(path, fix=_FORM)
    boxes = {name: _parse_boxes(path, name, value) for name, value in content.items()}
    _require_scans(path, list(boxes), [case.name for case in cases])
    for case in own:
        if boxes.get(case.name):
            try:
                shape = _read_header(case, reading).shape
            except (UserError, OSError):
                continue  # the scan is named when its turn comes
            _require_inside(path, case.name, boxes[case.name], shape)
    return lambda case: boxes.get(case.name, ())


def box_mask(boxes: Sequence[Box], grid: Grid, margin: float) -> np.ndarray:
    """The voxels of the model's grid that touch a box grown by a margin.

    Boxes are placed by their edges rather than resampled as masks, so that none is lost between
    the voxels of a coarser grid. Of a sheared scan a box becomes the upright one that holds it.

    Args:
        boxes: along the axes of the scan's file.
        grid: of the scan.
        margin: voxels of the model's grid added on every side.

    Returns:
        [d, h, w] bool.
    """
    affine = grid.orientation.affine
    if grid.orientation.is_sheared:
        _, affine = rectified_grid(grid.orientation)
    edges = _move_boxes(boxes, grid.header.affine, affine).reshape(-1, 2, 3)
    edges *= np.array(grid.model_shape) / np.array(grid.shape)
    starts = np.floor(edges[:, 0] - margin + _ROUNDING).astype(int)
    stops = np.ceil(edges[:, 1] + margin - _ROUNDING).astype(int)
    mask = np.zeros(grid.model_shape, bool)
    for start, stop in zip(np.maximum(starts, 0), np.maximum(stops, 0), strict=True):
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def hash_boxes(boxes: Sequence[Sequence[int]]) -> str:
    """SHA-256 of a scan's boxes, in whichever order they were given."""
    return hashlib.sha256(json.dumps(sorted(set(map(tuple, boxes)))).encode()).hexdigest()


class PromptedVolume:
    """A scan [D, H, W, P] and its prompt as channel P + 1, joined only where they are cut."""

    def __init__(self, image: np.ndarray, mask: np.ndarray):
        """Keeps both; nothing of the size of a scan is copied.

        Args:
            image: [D, H, W, P].
            mask: [D, H, W] bool.
        """
        self._image, self._mask = image, mask

    def __getitem__(self, area: Any) -> np.ndarray:
        """The channels P + 1 of a box of voxels, the last one 0 or 1."""
        prompt = self._mask[area][..., None].astype(self._image.dtype)
        return np.concatenate([self._image[area], prompt], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class _TruthBoxes:
    """Boxes of the tumours in a split's labels, one per 26-connected component of any class.

    Attributes:
        manifest: of the store.
        reading: how scans are read that do not say it themselves.
    """

    manifest: Manifest
    reading: ReadOptions

    @classmethod
    def of(cls, store: str, cases: Sequence[Case], reading: ReadOptions) -> '_TruthBoxes':
        """Raises UserError if a case has no label to read."""
        found = cls(PatchStore(store).manifest, reading)
        for case in cases:
            path = found._label(case)
            if path is None or not path.exists():
                raise UserError(
                    f'--boxes=truth: case {case.name} has no label{f" {path}" if path else ""}; '
                    'put it back, or give a JSON file of boxes'
                )
        return found

    def __call__(self, case: Case) -> Boxes:
        path = self._label(case)
        assert path is not None
        label, volume = truth.read_truth(path, truth.TruthRules.of(self.manifest, case.name))
        roles = ('tumour', 'ood')
        ids = [record['id'] for record in self.manifest.labels if record['role'] in roles]
        boxes = boxes_from_mask(np.isin(label, ids))
        header = _read_header(case, self.reading)  # the label may be stored in another axis order
        moved = _move_boxes(boxes.tolist(), volume.header.affine, header.affine)
        inside = np.clip(np.rint(moved).astype(int), 0, np.tile(header.shape, 2))
        return tuple(_as_box(values) for values in inside.tolist())

    def _label(self, case: Case) -> pathlib.Path | None:
        source = self.manifest.cases[case.name]['source']
        return pathlib.Path(self.manifest.source) / source['label'] if source.get('label') else None


def _as_box(values: Sequence[int]) -> Box:
    i0, j0, k0, i1, j1, k1 = values
    return i0, j0, k0, i1, j1, k1


def _move_boxes(
    boxes: Sequence[Sequence[int]], source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Boxes [M, 6] of one grid as the boxes of another that just hold them, as float edges.

    Args:
        boxes: half-open indices; the edge of voxel i is i, its centre i + 0.5.
        source: [4, 4] index of a voxel's centre to world mm.
        target: the same of the other grid.
    """
    edges = np.asarray(boxes, np.float64).reshape(-1, 2, 3)
    picks = np.array(list(itertools.product((0, 1), repeat=3)))
    corners = edges[:, picks, np.arange(3)] - 0.5  # [M, 8, 3]
    to_target = np.linalg.inv(target) @ source
    moved = corners @ to_target[:3, :3].T + to_target[:3, 3] + 0.5
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def _parse_boxes(path: pathlib.Path, name: str, value: Any) -> Boxes:
    """The boxes that a file gives a case."""
    where = f'--boxes={path}: case {name!r}'
    is_list = isinstance(value, list) and all(isinstance(box, list) for box in value)
    if not is_list or any(len(box) != 6 or any(type(v) is not int for v in box) for box in value):
        raise UserError(f'{where} has no list of boxes; {_FORM}')
    for box in value:
        if any(low >= high for low, high in zip(box[:3], box[3:], strict=True)):
            raise UserError(
                f'{where}: box {box} has no extent; the last three indices must be larger than '
                'the first three'
            )
    return tuple(_as_box(box) for box in value)


def _require_scans(path: pathlib.Path, names: Sequence[str], scans: Sequence[str]) -> None:
    for name in names:
        if name not in scans:
            (near,) = difflib.get_close_matches(name, scans, 1, 0.0)
            raise UserError(
                f'--boxes={path}: case {name!r} is none of the {len(scans)} scans; did you mean '
                f'{near!r}?'
            )


def _require_inside(
    path: pathlib.Path, name: str, boxes: Sequence[Box], shape: Sequence[int]
) -> None:
    for box in boxes:
        if min(box[:3]) < 0 or any(v > size for v, size in zip(box[3:], shape, strict=True)):
            voxels = ' x '.join(map(str, shape))
            raise UserError(
                f'--boxes={path}: case {name!r}: box {list(box)} lies outside the scan of {voxels} '
                'voxels; give indices along the axes of its file'
            )


def _read_header(case: Case, reading: ReadOptions) -> Header:
    """Of the first channel, whose axes boxes follow."""
    own = case.reading or reading
    return volumes.read_header(
        case.images[0],
        series=own.series,
        allow=own.allow,
        assume_orientation=own.assume_orientation,
    )
