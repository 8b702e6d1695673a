"""Fits the statistics of Standardized Max Logits from a run's training cases, once per model.

RUN/sml_statistics.json keeps them, with the cases they were taken from. Only cases that the run's
own manifest lists as its training split are read: scores standardised on validation or test cases
would be of no use for a comparison.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from maxquery_jax.baselines import sml
from maxquery_jax.data.sampling import draw_foreground, oversampled_classes, sample_box
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.files import read_json, write_json
from maxquery_jax.typing import Array

if TYPE_CHECKING:
    from maxquery_jax.inference.model import LoadedModel

FILE_NAME = 'sml_statistics.json'
NUM_PATCHES = 200
_FORMAT = 'maxquery_jax/sml'
_VERSION = 1
_SEED = 0


def make_sml_score(model: 'LoadedModel') -> Callable[[Array], Array]:
    """The score `sml` of a model: logits [B, D, H, W, K] to A [B, D, H, W].

    Raises:
        UserError: the statistics were never fitted and the training data are not there.
    """
    return functools.partial(
        sml.sml_score,
        statistics=load_statistics(model),
        width=sml.default_width(model.spacing_mm),
        dilation=sml.default_dilation(model.spacing_mm),
    )


def load_statistics(model: 'LoadedModel', num_patches: int | None = None) -> sml.SmlStatistics:
    """Reads the statistics of a model's run, or fits and writes them.

    A file of other parameters (another stage or step) is replaced.

    Args:
        model: loaded from a run.
        num_patches: training patches to fit on; None for `NUM_PATCHES`.

    Raises:
        UserError: they have to be fitted and the store is gone, or was prepared anew.
    """
    if model.run_dir is None:
        raise UserError(f'the model {model.description} is not a run: sml needs its training data')
    path = model.run_dir / FILE_NAME
    found = _read(path, model)
    if found is None:
        store, cases = _training_cases(model, path)
        count = NUM_PATCHES if num_patches is None else num_patches
        moments, used = fit_moments(model, store, cases, count)
        write_json(path, _record(model, moments, used, count))
        found = _read(path, model)
        assert found is not None
    return found


def fit_moments(
    model: 'LoadedModel', store: PatchStore, cases: Sequence[str], num_patches: int
) -> tuple[sml.LogitMoments, tuple[str, ...]]:
    """Moments of the max logits over random training patches.

    The patches are drawn as in training, in turns over the cases and with the run's share of them
    around foreground, so that rare classes are predicted. Deviation: the reference takes the first
    50 training batches with their augmentation; here nothing is augmented.

    Args:
        model: the network.
        store: holds the cases.
        cases: ids, of the training split.
        num_patches: how many.

    Returns:
        The moments and the cases that were read, sorted.
    """
    sampling = _sampling(model)
    classes = oversampled_classes(store, sampling['oversample_roles'])
    step = jax.jit(lambda params, tiles: sml.logit_moments(model.forward(params, tiles)[0]))
    order = np.random.default_rng(_SEED).permutation(sorted(cases))
    moments, used = sml.empty_moments(model.num_classes), set()
    print(f'sml: statistics of {num_patches} patches of the training cases', flush=True)
    for index in range(num_patches):
        case = str(order[index % len(order)])
        rng = np.random.default_rng([_SEED, index])
        forced = rng.random() < sampling['oversample_rate']
        coords = draw_foreground(store, case, classes, rng) if forced else None
        start = sample_box(store.shape(case), model.patch_size, rng, coords)
        image = store.read_image(case, start, model.patch_size)
        moments = sml.merge_moments(moments, jax.device_get(step(model.params, image[None])))
        used.add(case)
    return moments, tuple(sorted(used))


def _training_cases(model: 'LoadedModel', path: pathlib.Path) -> tuple[PatchStore, tuple[str, ...]]:
    """The store and the cases that the run trained on."""
    assert model.run_dir is not None
    fix = f'sml needs {path.name}, which is fitted on the training cases'
    if not model.store:
        raise UserError(f'the model {model.description} names no store; {fix}')
    try:
        store = PatchStore(model.store)
    except UserError as error:
        raise UserError(f'{error} ({fix})') from error
    manifest = read_json(model.run_dir / 'manifest.json', fix='train the run again')
    cases = tuple(manifest.get('data', {}).get('splits', {}).get('train', ()))
    strange = sorted({*cases} - {*store.manifest.cases} | {*cases} & {*store.case_ids('test')})
    if strange or not cases:
        what = f'case {strange[0]!r} is not one for training there' if strange else 'no case'
        raise UserError(
            f'store {model.store}: {what}; it is not the one the run was trained on: restore it '
            f'({fix})'
        )
    return store, cases


def _sampling(model: 'LoadedModel') -> dict[str, Any]:
    """How the run drew its patches."""
    assert model.run_dir is not None
    config = read_json(model.run_dir / 'config.json', fix='train the run again')
    return config['data']


def _record(
    model: 'LoadedModel', moments: sml.LogitMoments, used: Sequence[str], num_patches: int
) -> dict[str, Any]:
    statistics = sml.finish_moments(moments)
    return {
        'format': _FORMAT,
        'version': _VERSION,
        'stage': model.stage,
        'step': model.step,
        'params_sha256': model.params_sha256,
        'classes': [label['name'] for label in model.known_labels],
        'count': [int(n) for n in moments.count],
        'mean': [float(x) for x in statistics.mean],
        'variance': [float(x) ** 2 for x in statistics.std],
        'patches': num_patches,
        'split': 'train',
        'cases': list(used),
    }


def _read(path: pathlib.Path, model: 'LoadedModel') -> sml.SmlStatistics | None:
    """The statistics of a file, None if there is none or it is another model's."""
    try:
        content = json.loads(path.read_text())
        known = (content['format'], content['version'], content['params_sha256'])
        mean = np.array(content['mean'], np.float32)
        std = np.sqrt(np.array(content['variance'], np.float64)).astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if known != (_FORMAT, _VERSION, model.params_sha256) or len(mean) != model.num_classes:
        return None
    return sml.SmlStatistics(mean=mean, std=std)
