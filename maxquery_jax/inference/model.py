"""A trained model, ready to predict: network, parameters and what its input must look like."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from maxquery_jax.augment.intensity import normalise_intensity
from maxquery_jax.baselines import mc_dropout
from maxquery_jax.baselines.synthcp.model import synthcp_score
from maxquery_jax.errors import UserError
from maxquery_jax.inference.decision import (
    Decision,
    is_predicted,
    largest_logit,
    mark_predicted,
    nested_decision,
)
from maxquery_jax.inference.sml_fit import make_sml_score
from maxquery_jax.inference.tile_program import Forward, TileProgram
from maxquery_jax.inference.zept_forward import ZePTQueries, make_zept_forward, zept_scores
from maxquery_jax.models.build import ZEPT_STAGES
from maxquery_jax.models.maxquery import anomaly_map
from maxquery_jax.ops.anomaly import SCORES
from maxquery_jax.train.checkpoint import load_params
from maxquery_jax.train.query_table import build_query_table
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.zept_stage import KNOWLEDGE_FILE, has_query_table
from maxquery_jax.typing import Array, Config, PyTree, SegmentationOutputs

_GROUPS = {'background': 0, 'organ': 1, 'tumour': 2}
_DATA_KEYS = ('spacing_mm', 'channels', 'intensity', 'labels', 'label_map')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """Everything prediction needs.

    Attributes:
        forward: (params, raw tiles [b, *patch_size, P]) to (seg_logits [b, *patch_size, C]
            float32, scores name to [b, *patch_size] float32); pure, normalises by itself. C is K,
            or the number of labels of a nested model. With `prompt_margin` tiles have a channel
            more, 1 inside the boxes that prompt the model.
        params: parameter tree.
        patch_size: (D, H, W) voxels of a tile.
        spacing_mm: (z, y, x) voxel size the network was trained at, mm.
        channels: names of the P input channels, in order.
        intensity: 'lower', 'upper', 'shift', 'scale': P floats each, HU.
        labels: records {id, name, role} of all store ids; ids >= K are predicted where they say
            so (`decision.is_predicted`).
        label_map: raw label id (string) to store id.
        score_names: anomaly scores that it has; the first is the default. `forward` returns all but
            those of `fitted_scores`.
        fitted_scores: name to a function that makes a score of the logits alone (seg_logits to map)
            from this model, reading training data if it must.
        description: run, stage and step, for records and messages.
        stage: stage of the experiment.
        step: optimiser steps of the checkpoint.
        params_sha256: hash of the parameters' names, shapes and values.
        store: path of the patch store the model was trained on, '' if unknown.
        run_dir: directory it was loaded from, None for models built in Python.
        network: the module behind `forward`, for `inference.queries`; None where there is not
            one network, as in an ensemble.
        query_groups: (N1, N2, N3) queries of background, organ and tumour; empty without queries.
        qd_weight: of the query-distribution loss that it was trained with.
        is_nested: whether the classes are masks that hold each other (`decision.NestedDecision`)
            with a channel per label, as ZePT's, or exclude each other.
        zept: what the queries of a ZePT stand for, else None.
        texts: class to the hash of its text, where tumours are found by texts (`zero_shot`).
        prompt_margin: voxels by which boxes are grown, where boxes are its prompts
            (`boxes.with_boxes`), else None.
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
    fitted_scores: Mapping[str, Callable[['LoadedModel'], Callable[[Array], Array]]] = (
        dataclasses.field(default_factory=dict)
    )
    description: str = ''
    stage: str = ''
    step: int = 0
    params_sha256: str = ''
    store: str = ''
    run_dir: pathlib.Path | None = None
    network: nn.Module | None = None
    query_groups: tuple[int, ...] = ()
    qd_weight: float = 0.0
    is_nested: bool = False
    zept: ZePTQueries | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt_margin: float | None = None
    _programs: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def known_labels(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the K classes the network learnt."""
        return tuple(label for label in self.labels if label['role'] != 'ood')

    @property
    def predicted_labels(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the classes it predicts, background and zero-shot classes included."""
        return tuple(label for label in self.labels if is_predicted(label))

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.known_labels)

    @property
    def num_logits(self) -> int:
        """C, channels of seg_logits."""
        return len(self.labels) if self.is_nested else self.num_classes

    @property
    def tile_lower(self) -> tuple[float, ...]:
        """What air is in each channel of a tile; a prompt, which is 0 there, is the last one."""
        prompt = () if self.prompt_margin is None else (0.0,)
        return (*self.intensity['lower'], *prompt)

    @property
    def class_groups(self) -> tuple[int, ...]:
        """Per id of a known or zero-shot class 0 background, 1 organ or 2 tumour."""
        zero_shot = {label['id'] for label in self.predicted_labels if label['role'] == 'ood'}
        last = max({self.num_classes - 1, *zero_shot})
        groups = {label['id']: _GROUPS.get(label['role'], 0) for label in self.labels}
        return tuple(2 if i in zero_shot else groups[i] for i in range(last + 1))

    @property
    def tumour_ids(self) -> tuple[int, ...]:
        """Store ids of the tumours it predicts, known and zero-shot."""
        roles = ('tumour', 'ood')
        return tuple(label['id'] for label in self.predicted_labels if label['role'] in roles)

    @property
    def decide(self) -> Decision:
        """Turns averaged logits into classes."""
        if not self.is_nested:
            return largest_logit
        return nested_decision(self.predicted_labels)

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
            forward = self.forward_with(key[0])
            self._programs[key] = TileProgram(forward, key[0], self.patch_size, mirror=mirror)
        return self._programs[key]

    def forward_with(self, scores: Sequence[str]) -> Forward:
        """`forward`, which also returns those of `scores` that have to be fitted first.

        Raises:
            UserError: the training data are needed and are not there.
        """
        fitted = {
            name: self.fitted_scores[name](self) for name in scores if name in self.fitted_scores
        }

        def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
            seg_logits, maps = self.forward(params, tiles)
            return seg_logits, maps | {name: score(seg_logits) for name, score in fitted.items()}

        return forward if fitted else self.forward


def make_forward(
    model: nn.Module,
    intensity: Mapping[str, Any],
    score_names: Sequence[str],
    *,
    dropout_passes: int = 0,
) -> Forward:
    """Wraps a network as `LoadedModel.forward`.

    Args:
        model: returns SegmentationOutputs, MaxQueryOutputs or SynthCPOutputs.
        intensity: window and scale per channel.
        score_names: keys of `ops.anomaly.SCORES`; 'query' scores need a MaxQuery model. And
            'mc_entropy', and 'synthcp' of a SynthCP model.
        dropout_passes: if positive, the logits are the mean of so many passes with dropout.
    """

    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        image = normalise_intensity(tiles, intensity)
        outputs: Any
        if dropout_passes:
            logits = mc_dropout.mean_logits(model, params, image, dropout_passes)
            outputs = SegmentationOutputs(seg_logits=logits)
        else:
            outputs = model.apply({'params': params}, image, train=False)
        scores = {name: _score(outputs, name) for name in score_names}
        return outputs.seg_logits.astype(jnp.float32), scores

    return forward


def _score(outputs: Any, name: str) -> Array:
    if name == 'mc_entropy':
        return mc_dropout.entropy_score(outputs.seg_logits)
    if name == 'synthcp':
        return synthcp_score(outputs.seg_logits, outputs.similarity)
    return anomaly_map(outputs, name)


def load_model(
    run_dir: str | os.PathLike[str], stage: str | None = None, *, checkpoint: str = 'newest'
) -> LoadedModel:
    """Loads a trained run.

    Args:
        run_dir: directory that launch.train wrote.
        stage: stage of the experiment; None takes the last one that has a checkpoint.
        checkpoint: 'newest', or 'best' by the run's `config.checkpoint.best`.

    Raises:
        UserError: the directory is not a run, lacks a file or a checkpoint, or does not fit
            this version of the program.
    """
    run_dir = pathlib.Path(run_dir)
    config = _read_json(run_dir, 'config.json')
    manifest = _read_json(run_dir, 'manifest.json')
    data = _data_of(run_dir, manifest)
    params, stage, step = load_params(run_dir, stage, best=checkpoint == 'best')
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
    zept = _zept_queries(cfg, objective, data, run_dir)
    model = make_model(cfg, objective, known, (dz, dy, dx))
    if zept is None:
        passes = _dropout_passes(cfg, objective)
        names = _score_names(objective, passes)
        forward = make_forward(model, data['intensity'], names, dropout_passes=passes)
        fitted = {'sml': make_sml_score} if objective != 'maxquery' and not passes else {}
    else:
        number = ZEPT_STAGES.get(objective, 2)  # the Universal Model has all masks, as stage II
        labels = mark_predicted(labels, zept.predicted_ids(number))
        names, fitted = zept_scores(number, zept.table), {}
        forward = make_zept_forward(model, data['intensity'], len(labels), zept.table, names)
    return LoadedModel(
        forward=forward,
        params=jax.device_put(params),
        patch_size=(depth, height, width),
        spacing_mm=(dz, dy, dx),
        channels=tuple(data['channels']),
        intensity=data['intensity'],
        labels=labels,
        label_map=data['label_map'],
        score_names=(*names, *fitted),
        fitted_scores=fitted,
        description=f'{run_dir.name} ({stage}, step {step})',
        stage=stage,
        step=step,
        params_sha256=hash_params(params),
        store=str(manifest.get('store', '')),
        run_dir=run_dir,
        network=model,
        query_groups=_query_groups(cfg, objective),
        qd_weight=float(config[stage].get('loss', {}).get('qd_weight', 0.0)),
        is_nested=zept is not None,
        zept=zept,
    )


def _zept_queries(
    cfg: Config, objective: str, data: Mapping[str, Any], run_dir: pathlib.Path
) -> ZePTQueries | None:
    """What the masks of a ZePT or Universal Model stand for, else None; texts are the run's."""
    if not has_query_table(objective):
        return None
    options = cfg.model.zept
    if (run_dir / KNOWLEDGE_FILE).is_file():
        options.knowledge = str(run_dir / KNOWLEDGE_FILE)
    table = build_query_table(options, data['labels'], data.get('contains', {}))
    return ZePTQueries(table=table, knowledge=options.knowledge, similarity=options.alignment)


def _data_of(run_dir: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's manifest says about its data."""
    data = manifest.get('data')
    data = data if isinstance(data, dict) else {}
    missing = [key for key in _DATA_KEYS if key not in data]
    if missing:
        raise UserError(
            f'{run_dir / "manifest.json"} lacks data.{missing[0]}; the run was made by another '
            'version, train it again or use that version'
        )
    return data


def hash_params(params: PyTree) -> str:
    """SHA-256 over names, shapes, types and values of a parameter tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)}:{array.dtype}:{array.shape};'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _score_names(objective: str, dropout_passes: int) -> tuple[str, ...]:
    """Scores that the network of this objective gives, the default first."""
    if objective == 'maxquery':
        return tuple(SCORES)
    own = ('mc_entropy',) if dropout_passes else ('synthcp',) if objective == 'synthcp' else ()
    return (*own, 'category_softmax', 'category_logit')


def _dropout_passes(cfg: Config, objective: str) -> int:
    """Passes per prediction: those of MC Dropout for a segmenter with dropout, else 0 for one."""
    backbone = cfg.model.backbone
    is_mc = objective == 'segmentation' and backbone.get('dropout_rate', 0.0) > 0
    return int(backbone.get('dropout_passes', 20)) if is_mc else 0


def _query_groups(cfg: Config, objective: str) -> tuple[int, ...]:
    """Queries of background, organ and tumour, where the objective has queries."""
    return tuple(cfg.model.decoder.query_groups) if objective == 'maxquery' else ()


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
