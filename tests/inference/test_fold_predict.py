"""A run that was trained as a fold predicts and evaluates the cases that its fold validates."""

import json

import pytest
from test_predict_split import SPACING, store
from threshold_model import make_threshold_model

from maxquery_jax.errors import UserError
from maxquery_jax.inference.predict import predict
from maxquery_jax.report.evaluate import evaluate

__all__ = ['store']  # a fixture; there, a trains and b validates


@pytest.fixture
def model(store, tmp_path):
    """Loaded from a run that was trained on b."""
    run = tmp_path / 'run'
    run.mkdir()
    splits = {'train': ['b'], 'val': ['a'], 'test': ['c', 'd']}
    record = {'store': str(store), 'data': {'splits': splits}}
    (run / 'manifest.json').write_text(json.dumps(record))
    manifest = json.loads((store / 'manifest.json').read_text())
    return make_threshold_model(
        channels=('arterial', 'venous'),
        spacing_mm=SPACING,
        store=str(store),
        run_dir=run,
        labels=tuple(manifest['labels']),
        label_map=manifest['label_map'],
    )


def test_val_is_that_of_the_fold(model):
    assert [record.name for record in predict(model, split='val')] == ['a.json']
    summary = evaluate(model=model.run_dir, split='val')
    assert [case['case'] for case in summary['cases']] == ['a']


def test_a_case_that_the_store_lost_is_a_user_error(model):
    file = model.run_dir / 'manifest.json'
    record = json.loads(file.read_text())
    record['data']['splits']['val'] = ['z']
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="lacks 'z' of split 'val'"):
        predict(model, split='val')
    with pytest.raises(UserError, match="lacks case 'z'"):
        evaluate(model=model.run_dir, split='val')
