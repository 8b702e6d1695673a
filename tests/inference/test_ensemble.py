"""Ensembles: means of their members' outputs, and what cannot be one."""

import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from threshold_model import make_threshold_model, phantom_hu, save_scan

from maxquery_jax.errors import UserError
from maxquery_jax.inference.ensemble import combine, load_ensemble
from maxquery_jax.inference.predict import predict
from maxquery_jax.ops.anomaly import SCORES

SHAPE = (12, 10, 14)


def member(shift=0.0, **fields):
    return make_threshold_model(params={'shift': jnp.float32(shift)}, **fields)


def offset_logits(model, offset):
    """The same model with other logits, so that the mean of two differs from both."""

    def forward(params, tiles):
        seg_logits, scores = model.forward(params, tiles)
        return seg_logits * offset, scores

    return forward


def test_logits_and_scores_are_means_of_the_members():
    one, two = member(0.5), member(2.0)
    two = member(2.0, forward=offset_logits(two, 3.0))
    tiles = np.random.default_rng(0).integers(-150, 200, (2, 8, 8, 8, 1)).astype(np.int16)
    ensemble = combine([one, two])
    seg_logits, scores = ensemble.forward_with(ensemble.score_names)(ensemble.params, tiles)
    outputs = [model.forward(model.params, tiles) for model in (one, two)]
    np.testing.assert_allclose(seg_logits, np.mean([z for z, _ in outputs], axis=0), rtol=1e-6)
    for name in ensemble.score_names:
        expected = np.mean([found[name] for _, found in outputs], axis=0)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-6)
    # not the mean of the probabilities, which would differ
    assert not np.allclose(outputs[0][0], outputs[1][0])


def test_scores_that_are_fitted_use_each_members_own_fit():
    def fit(factor):
        return {'sml': lambda model: lambda seg_logits: factor * seg_logits.sum(-1)}

    names = ('query_logit', 'sml')
    members = [member(score_names=names, fitted_scores=fit(factor)) for factor in (1.0, 3.0)]
    tiles = np.zeros((1, 8, 8, 8, 1), np.int16)
    _, scores = combine(members).forward_with(('sml',))(combine(members).params, tiles)
    np.testing.assert_allclose(scores['sml'], 2.0)  # one class per voxel: the sum is 1


def test_predictions_are_those_of_the_mean(tmp_path):
    scan = save_scan(tmp_path / 's.nii.gz', phantom_hu(SHAPE), np.diag([2.0, 2.0, 3.0, 1.0]))
    members = [member(shift) for shift in (0.5, 2.0)]
    for name, model in zip('ab', members, strict=True):
        predict(model, scan, tmp_path / name)
    predict(combine(members), scan, tmp_path / 'both')
    maps = [nib.load(tmp_path / f / 's_ood.nii.gz').get_fdata() for f in ('a', 'b', 'both')]
    np.testing.assert_allclose(maps[2], (maps[0] + maps[1]) / 2, atol=2e-3)  # float16
    record = json.loads((tmp_path / 'both/s.json').read_text())
    assert record['model']['name'].startswith('mean of 2: threshold')
    hashes = [json.loads((tmp_path / f / 's.json').read_text())['model'] for f in ('a', 'both')]
    assert hashes[0]['params_sha256'] != hashes[1]['params_sha256']


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('patch_size', (8, 8, 16), 'patch size'),
        ('spacing_mm', (1.0, 1.0, 2.0), 'voxel spacing'),
        ('channels', ('venous',), 'channels'),
        ('labels', ({'id': 0, 'name': 'background', 'role': 'background'},), 'labels'),
        ('label_map', {'0': 0}, 'label map'),
    ],
)
def test_members_must_fit_together(field, value, message):
    with pytest.raises(UserError, match=f'one {message}'):
        combine([member(), member(**{field: value})])


def test_scores_are_those_that_all_members_have():
    other = member(score_names=('category_softmax',))
    assert combine([member(), other]).score_names == ('category_softmax',)
    assert combine([member(), other]).choose_scores(None) == ('category_softmax',)
    with pytest.raises(UserError, match='no anomaly score in common'):
        combine([member(), member(score_names=('sml',))])
    assert 'category_softmax' in SCORES


def test_air_is_what_is_air_for_every_member():
    windows = [{**member().intensity, 'lower': [lower]} for lower in (-200.0, -300.0)]
    models = [member(intensity=window) for window in windows]
    assert combine(models).intensity['lower'] == [-300.0]


def test_a_run_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match='twice'):
        load_ensemble([tmp_path, tmp_path])


def test_cases_that_trained_a_member_are_not_predicted_as_held_out(tmp_path, monkeypatch):
    runs = []
    for name, train in (('a', ['x']), ('b', ['y'])):
        run = tmp_path / name
        run.mkdir()
        (run / 'manifest.json').write_text(json.dumps({'data': {'splits': {'train': train}}}))
        runs.append(member(run_dir=run, store='S'))
    from maxquery_jax.inference import predict as module
    from maxquery_jax.inference.cases import Case

    monkeypatch.setattr(module, 'find_split', lambda *_: [Case('y', (tmp_path / 'y.nii.gz',))])
    with pytest.raises(
        UserError, match="1 of 1 cases of split 'val', such as y, trained mean of 2"
    ):
        predict(combine(runs), split='val', output=tmp_path / 'out')
