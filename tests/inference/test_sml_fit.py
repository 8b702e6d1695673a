"""SML statistics of a run: from its training cases alone, kept, renewed when they are stale."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.baselines import sml
from maxquery_jax.data.store import PatchStore
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError
from maxquery_jax.inference import sml_fit
from maxquery_jax.inference.model import LoadedModel
from tests.data.store_helper import LABELS, make_case, make_manifest

PATCH = (8, 8, 8)
SPLITS = {'train': ['a', 'b'], 'val': ['c'], 'test': ['d', 'e']}


def build_run(path, *, poison=False, splits=SPLITS):
    """A run directory beside a store; poisoned, its val and test cases hold other volumes."""
    writer = StoreWriter(path / 'store')
    records = {}
    for index, case in enumerate('abcde'):
        image, label = make_case(index)
        if poison and case in 'cde':
            image, label = np.full_like(image, 3000), np.full_like(label, 2)
        records[case] = writer.write_case(case, image, label)
    writer.finish(make_manifest(records, SPLITS))
    run = path / 'run'
    run.mkdir()
    (run / 'manifest.json').write_text(json.dumps({'data': {'splits': splits}}))
    sampling = {'oversample_rate': 0.5, 'oversample_roles': ['organ', 'tumour']}
    (run / 'config.json').write_text(json.dumps({'data': sampling}))
    return make_model(path)


def make_model(path, **fields):
    """Three classes by brightness, whose logits are distances in HU."""

    def forward(params, tiles):
        x = tiles[..., 0].astype(jnp.float32)
        return jnp.stack([3000 - x, x, 0 * x], -1) * params['gain'], {}

    defaults = {
        'forward': forward,
        'params': {'gain': jnp.float32(0.01)},
        'patch_size': PATCH,
        'spacing_mm': (3.0, 2.0, 2.0),
        'channels': ('phase0',),
        'intensity': {},
        'labels': LABELS,
        'label_map': {},
        'score_names': ('category_softmax', 'sml'),
        'fitted_scores': {'sml': sml_fit.make_sml_score},
        'stage': 'extend',
        'step': 7,
        'params_sha256': 'ab' * 32,
        'store': str(path / 'store'),
        'run_dir': path / 'run',
    }
    return LoadedModel(**(defaults | fields))


def test_statistics_are_those_of_the_training_patches(tmp_path, monkeypatch):
    model = build_run(tmp_path)
    patches = []
    original = PatchStore.read_image

    def spy(store, case, start=None, size=None):
        patches.append((case, original(store, case, start, size)))
        return patches[-1][1]

    monkeypatch.setattr(PatchStore, 'read_image', spy)
    found = sml_fit.load_statistics(model, num_patches=6)
    assert [case for case, _ in patches].count('a') == 3 and {c for c, _ in patches} == {'a', 'b'}
    x = np.stack([image for _, image in patches])[..., 0].astype(np.float64)
    z = np.stack([3000 - x, x, 0 * x], -1) * 0.01
    for c in range(2):
        chosen = z.max(-1)[z.argmax(-1) == c]
        np.testing.assert_allclose(found.mean[c], chosen.mean(), rtol=1e-4)
        np.testing.assert_allclose(found.std[c], chosen.std(), rtol=1e-3)
    np.testing.assert_allclose(found.mean[2], z.max(-1).mean(), rtol=1e-4)  # never predicted
    record = json.loads((tmp_path / 'run' / 'sml_statistics.json').read_text())
    assert record['cases'] == ['a', 'b'] and record['split'] == 'train'
    assert (record['stage'], record['step'], record['patches']) == ('extend', 7, 6)
    assert record['classes'] == ['background', 'liver', 'cyst'] and record['count'][2] == 0
    assert sum(record['count']) == 6 * 8**3
    assert [p.name for p in tmp_path.joinpath('run').glob('*sml*')] == ['sml_statistics.json']


def test_no_validation_or_test_voxel_enters(tmp_path):
    for name in ('clean', 'poisoned'):
        (tmp_path / name).mkdir()
    clean = sml_fit.load_statistics(build_run(tmp_path / 'clean'), 8)
    poisoned = sml_fit.load_statistics(build_run(tmp_path / 'poisoned', poison=True), 8)
    np.testing.assert_array_equal(clean.mean, poisoned.mean)
    np.testing.assert_array_equal(clean.std, poisoned.std)


def test_a_manifest_that_names_test_cases_is_refused(tmp_path):
    model = build_run(tmp_path, splits={'train': ['a', 'd']})
    with pytest.raises(UserError, match=r"case 'd' is not one for training"):
        sml_fit.load_statistics(model)


def test_statistics_are_kept_until_the_parameters_change(tmp_path):
    model = build_run(tmp_path)
    first = sml_fit.load_statistics(model, 4)
    path = tmp_path / 'run' / 'sml_statistics.json'
    (tmp_path / 'store').rename(tmp_path / 'moved')
    np.testing.assert_array_equal(sml_fit.load_statistics(model, 4).mean, first.mean)
    trained_on = {'params': {'gain': jnp.float32(0.02)}, 'params_sha256': 'cd' * 32}
    newer = dataclasses.replace(model, **trained_on)
    with pytest.raises(UserError, match='no patch store there.*sml needs sml_statistics.json'):
        sml_fit.load_statistics(newer)
    (tmp_path / 'moved').rename(tmp_path / 'store')
    np.testing.assert_allclose(sml_fit.load_statistics(newer, 4).mean, 2 * first.mean, rtol=1e-5)
    assert json.loads(path.read_text())['params_sha256'] == 'cd' * 32
    path.write_text('{"format": ')  # a damaged file is fitted again
    np.testing.assert_allclose(sml_fit.load_statistics(newer, 4).mean, 2 * first.mean, rtol=1e-5)


def test_models_without_training_data_say_so(tmp_path):
    with pytest.raises(UserError, match='not a run'):
        sml_fit.load_statistics(make_model(tmp_path, run_dir=None))
    with pytest.raises(UserError, match='names no store'):
        sml_fit.load_statistics(make_model(tmp_path, store=''))


def test_the_score_is_fitted_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sml_fit, 'NUM_PATCHES', 2)
    model = build_run(tmp_path)
    assert model.forward_with(('category_softmax',)) is model.forward
    assert not (tmp_path / 'run' / 'sml_statistics.json').exists()
    tiles = PatchStore(model.store).read_image('a', (0, 0, 0), PATCH)[None]
    logits, scores = jax.jit(model.forward_with(('sml',)))(model.params, jnp.asarray(tiles))
    statistics = sml_fit.load_statistics(model)
    expected = jax.jit(lambda z: sml.sml_score(z, statistics, width=1, dilation=(1, 2, 2)))(logits)
    np.testing.assert_allclose(scores['sml'], expected, rtol=1e-5)
