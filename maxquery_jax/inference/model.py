"""A trained model, ready to predict: network, parameters and what its input must look like."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from maxquery_jax.augment.intensity import normalise_intensity
from maxquery_jax.errors import UserError
from maxquery_jax.inference.tile_program import Forward, TileProgram
from maxquery_jax.models.maxquery import anomaly_map
from maxquery_jax.ops.anomaly import SCORES
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.stage import make_model
from maxquery_jax.typing import Array, PyTree

_GROUPS = {'background': 0, 'organ': 1, 'tumour': 2}
_DATA_KEYS = ('spacing_mm', 'channels', 'intensity', 'labels', 'label_map')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """Everything prediction needs.

    Attributes:
        forward: (params, raw tiles [b, *patch_size, P]) to (seg_logits [b, *patch_size, K]
            float32, scores name to [b, *patch_size] float32); pure, normalises by itself.
        params: parameter tree.
        patch_size: (D, H, W) voxels of a tile.
        spacing_mm: (z, y, x) voxel size the network was trained at, mm.
        channels: names of the P input channels, in order.
        intensity: 'lower', 'upper', 'shift', 'scale': P floats each, HU.
        labels: records {id, name, role} of all store ids; ids >= K are never predicted.
        label_map: raw label id (string) to store id.
        score_names: anomaly scores that `forward` returns; the first is the default.
        description: run, stage and step, for records and messages.
        params_sha256: hash of the parameters' names, shapes and values.
        store: path of the patch store the model was trained on, '' if unknown.
        run_dir: directory it was loaded from, None for models built in Python.
    """

    forward: Forward
    params: PyTree
    patch_size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    channels: tuple[str, ...]
    intensity: Mapping[str, Any]
    labels: tuple[Mapping[str, Any], ...]
    label_map: Mapping[str, int]
    score_names: tuple[str, ...]
    description: str = ''
    params_sha256: str = ''
    store: str = ''
    run_dir: pathlib.Path | None = None
    _programs: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def known_labels(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the K classes the network predicts."""
        return tuple(label for label in self.labels if label['role'] != 'ood')

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.known_labels)

    @property
    def class_groups(self) -> tuple[int, ...]:
        """Per class 0 background, 1 organ or 2 tumour."""
        return tuple(_GROUPS[label['role']] for label in self.known_labels)

    @property
    def tumour_ids(self) -> tuple[int, ...]:
        """Store ids of the known tumours."""
        return tuple(label['id'] for label in self.known_labels if label['role'] == 'tumour')

    def choose_scores(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        """Checks score names; None or empty means the model's default, 'all' every score.

        Raises:
            UserError: a name this model does not have, or a name given twice.
        """
        names = tuple(wanted or self.score_names[:1])
        if names == ('all',):
            names = self.score_names
        unknown = [name for name in names if name not in self.score_names]
        if unknown or len(set(names)) < len(names):
            what = f'has no score {unknown[0]!r}' if unknown else f'was given {names} with a repeat'
            raise UserError(
                f'the model {self.description} {what}: choose from '
                f'{", ".join(self.score_names)}, all'
            )
        return names

    def program(self, scores: Sequence[str], *, mirror: bool = False) -> TileProgram:
        """The compiled network for these scores; kept, so that all scans share it."""
        key = (tuple(scores), mirror)
        if key not in self._programs:
            self._programs[key] = TileProgram(self.forward, key[0], self.patch_size, mirror=mirror)
        return self._programs[key]


def make_forward(
    model: nn.Module, intensity: Mapping[str, Any], score_names: Sequence[str]
) -> Forward:
    """Wraps a network as `LoadedModel.forward`.

    Args:
        model: returns SegmentationOutputs or MaxQueryOutputs.
        intensity: window and scale per channel.
        score_names: keys of `ops.anomaly.SCORES`; 'query' scores need a MaxQuery model.
    """

    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        image = normalise_intensity(tiles, intensity)
        outputs: Any = model.apply({'params': params}, image, train=False)
        scores = {name: anomaly_map(outputs, name) for name in score_names}
        return outputs.seg_logits.astype(jnp.float32), scores

    return forward


def load_model(run_dir: str | os.PathLike[str], stage: str | None = None) -> LoadedModel:
    """Loads a trained run.

    Args:
        run_dir: directory that launch.train wrote.
        stage: stage of the experiment; None takes the last one that has a checkpoint.

    Raises:
        UserError: the directory is not a run, lacks a file or a checkpoint, or does not fit
            this version of the program.
    """
    run_dir = pathlib.Path(run_dir)
    config = _read_json(run_dir, 'config.json')
    manifest = _read_json(run_dir, 'manifest.json')
    data = manifest.get('data')
    data = data if isinstance(data, dict) else {}
    missing = [key for key in _DATA_KEYS if key not in data]
    if missing:
        raise UserError(
            f'{run_dir / "manifest.json"} lacks data.{missing[0]}; the run was made by another '
            'version, train it again or use that version'
        )
    params, stage, step = load_params(run_dir, stage)
    try:
        cfg = ConfigDict(_tuples(config))
        objective = config[stage]['objective']
        depth, height, width = config['data']['patch_size']
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{run_dir / "config.json"} lacks a field ({error}); the run was made by another '
            'version, train it again or use that version'
        ) from error
    labels = tuple(data['labels'])
    dz, dy, dx = data['spacing_mm']
    known = sum(label['role'] != 'ood' for label in labels)
    model = make_model(cfg, objective, known, (dz, dy, dx))
    names = _score_names(objective)
    return LoadedModel(
        forward=make_forward(model, data['intensity'], names),
        params=jax.device_put(params),
        patch_size=(depth, height, width),
        spacing_mm=(dz, dy, dx),
        channels=tuple(data['channels']),
        intensity=data['intensity'],
        labels=labels,
        label_map=data['label_map'],
        score_names=names,
        description=f'{run_dir.name} ({stage}, step {step})',
        params_sha256=hash_params(params),
        store=str(manifest.get('store', '')),
        run_dir=run_dir,
    )


def hash_params(params: PyTree) -> str:
    """SHA-256 over names, shapes, types and values of a parameter tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)}:{array.dtype}:{array.shape};'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _score_names(objective: str) -> tuple[str, ...]:
    """Scores a model of this objective has, the default first."""
    if objective == 'segmentation':
        return ('category_softmax', 'category_logit')
    return tuple(SCORES)


def _read_json(run_dir: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a file of the run directory; UserError says how to fix it."""
    try:
        content = json.loads((run_dir / name).read_text())
    except FileNotFoundError:
        raise UserError(
            f'{run_dir} is not a run directory: it has no {name}; give the --workdir of a training'
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f'{run_dir / name} cannot be read ({error}); restore the file') from error
    if not isinstance(content, dict):
        raise UserError(f'{run_dir / name} is not a JSON object; restore the file')
    return content


def _tuples(value: Any) -> Any:
    """Turns JSON lists back into the tuples a config holds."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
