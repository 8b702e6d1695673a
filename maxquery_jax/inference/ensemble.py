"""Several trained models as one: mean of their logits and of each raw score."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json
from maxquery_jax.inference.model import LoadedModel, load_model
from maxquery_jax.inference.tile_program import Forward
from maxquery_jax.typing import Array, PyTree

# What members must agree on, and in which words a user knows it.
_SHARED = {
    'patch_size': 'patch size (data.patch_size)',
    'spacing_mm': 'voxel spacing (launch.prepare --spacing)',
    'channels': 'channels',
    'labels': 'labels',
    'label_map': 'label map',
    'is_nested': 'way to decide classes (a ZePT and another model do not mix)',
    'prompt_margin': 'margin of --boxes (model.zept.box_margin)',
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble(LoadedModel):
    """A model that is the mean of others; its `params` are the tuple of theirs.

    The mean is taken of the logits Z, as nnU-Net v2 does over its folds, and for the same reason
    as over overlapping tiles: then one network and several are averaged alike. A score is the mean
    of the members' raw scores, on which all metrics rank. Members whose scores spread more count
    for more in it, so ensemble networks of one configuration, such as folds or seeds.

    Attributes:
        members: at least two.
    """

    members: tuple[LoadedModel, ...]

    def forward_with(self, scores: Sequence[str]) -> Forward:
        """See `LoadedModel.forward_with`; every member fits the scores to its own training data."""
        return _mean_forward([member.forward_with(scores) for member in self.members])


def load_ensemble(
    run_dirs: Sequence[str | os.PathLike[str]],
    stage: str | None = None,
    *,
    checkpoint: str = 'newest',
) -> LoadedModel:
    """Loads one run, or several as an ensemble.

    Args:
        run_dirs: directories that launch.train wrote.
        stage: of each; None takes the last one that has a checkpoint.
        checkpoint: of each, 'newest' or 'best'.

    Raises:
        UserError: a run cannot be loaded, is named twice, or does not fit the others.
    """
    paths = [pathlib.Path(run_dir) for run_dir in run_dirs]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise UserError(f'--model names {twice[0]} twice; an ensemble needs different runs')
    models = [load_model(path, stage, checkpoint=checkpoint) for path in paths]
    return models[0] if len(models) == 1 else combine(models)


def combine(members: Sequence[LoadedModel]) -> Ensemble:
    """Makes an ensemble of loaded models.

    Each member normalises the intensities by its own window. Scores are those that all have.

    Raises:
        UserError: members that do not fit together, or have no score in common.
    """
    first = members[0]
    for member in members[1:]:
        for field, words in _SHARED.items():
            ours, theirs = getattr(first, field), getattr(member, field)
            if ours != theirs:
                raise UserError(
                    f'an ensemble needs one {words}: {first.description} has {_short(ours)}, '
                    f'{member.description} has {_short(theirs)}'
                )
    names = [n for n in first.score_names if all(n in member.score_names for member in members)]
    if not names:
        listed = '; '.join(f'{m.description}: {", ".join(m.score_names)}' for m in members)
        raise UserError(f'the models of this ensemble have no anomaly score in common ({listed})')
    digest = hashlib.sha256(''.join(sorted(m.params_sha256 for m in members)).encode())
    stores = {member.store for member in members}
    return Ensemble(
        forward=_mean_forward([member.forward for member in members]),
        params=tuple(member.params for member in members),
        patch_size=first.patch_size,
        spacing_mm=first.spacing_mm,
        channels=first.channels,
        # Only `lower` is read: air at or below it is the same input for every member.
        intensity={
            **first.intensity,
            'lower': np.min([member.intensity['lower'] for member in members], axis=0).tolist(),
        },
        labels=first.labels,
        label_map=first.label_map,
        score_names=tuple(names),
        description=f'mean of {len(members)}: ' + ', '.join(m.description for m in members),
        params_sha256=digest.hexdigest(),
        store=stores.pop() if len(stores) == 1 else '',
        is_nested=first.is_nested,
        texts=first.texts,
        prompt_margin=first.prompt_margin,
        members=tuple(members),
    )


def trained_cases(model: LoadedModel) -> set[str]:
    """Cases that the run behind a model, or a member of it, was trained on, where it says so."""
    if isinstance(model, Ensemble):
        return set().union(*(trained_cases(member) for member in model.members))
    return set(run_splits(model.run_dir).get('train', ()))


def run_splits(run_dir: pathlib.Path | None) -> dict[str, list[str]]:
    """Splits that a run was trained with; empty where nothing was written about them."""
    if run_dir is None or not (run_dir / 'manifest.json').is_file():
        return {}
    manifest = read_json(run_dir / 'manifest.json', fix='restore the file')
    return manifest.get('data', {}).get('splits', {})


def _mean_forward(forwards: Sequence[Forward]) -> Forward:
    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        outputs = [one(own, tiles) for one, own in zip(forwards, params, strict=True)]
        names = [n for n in outputs[0][1] if all(n in scores for _, scores in outputs)]
        seg_logits = jnp.mean(jnp.stack([logits for logits, _ in outputs]), axis=0)
        scores = {
            name: jnp.mean(jnp.stack([found[name] for _, found in outputs]), axis=0)
            for name in names
        }
        return seg_logits, scores

    return forward


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
