"""Manifests of data that is not there: the phantom's is that of the cohort itself."""

import pytest

from configs import maxquery, zept
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.train.benchmark_step import network_size
from maxquery_jax.train.synthetic import planned_manifest


def test_a_phantom_experiment_has_the_classes_of_its_cohort(tmp_path):
    config = maxquery.get_config('demo')
    config.data.phantom.update(
        num_train=1, num_val=0, num_test_inlier=0, num_test_ood=0, shape_zyx=(16, 24, 24)
    )
    spec = config.data.phantom.to_dict()
    prepare(
        dataset='phantom', source=str(tmp_path / 'raw'), store=str(tmp_path / 'store'), phantom=spec
    )
    written = PatchStore(tmp_path / 'store').manifest
    planned = planned_manifest(config, 'finetune')
    assert planned.labels == written.labels
    assert planned.spacing_mm == written.spacing_mm
    assert len(planned.channels) == len(written.channels) == 3
    assert planned.num_classes == written.num_classes == 7  # five known tumours


def test_flags_win_over_the_cohort():
    config = maxquery.get_config('demo')
    manifest = planned_manifest(
        config, 'finetune', num_tumours=2, num_channels=2, spacing_mm=(4.0, 4.0, 4.0)
    )
    assert manifest.num_classes == 4
    assert len(manifest.channels) == 2 and manifest.spacing_mm == (4.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ('config', 'stage', 'classes', 'spacing'),
    [
        (maxquery.get_config('pancreas'), 'finetune', 9, (3.0, 0.419, 0.419)),
        (zept.get_config(), 'stage2', 28, (1.5, 1.5, 1.5)),
        (zept.get_config('paper,maxquery'), 'finetune', 28, (1.5, 1.5, 1.5)),
        (zept.get_config('demo'), 'stage2', 14, (5.0, 5.0, 5.0)),
    ],
)
def test_without_flags_the_data_is_the_experiment_s(config, stage, classes, spacing):
    manifest = planned_manifest(config, stage)
    assert (manifest.num_classes, manifest.spacing_mm) == (classes, spacing)


def test_the_demo_of_zept_can_be_counted():
    config = zept.get_config('demo')
    size = network_size(config, 'stage1', planned_manifest(config, 'stage1'))
    assert size['num_classes'] == 14 and size['parameters'] > 1e5
    assert 0 < 2 * size['gflop_forward'] < size['gflop_step']


def test_a_cohort_that_cannot_be_is_one_line():
    config = maxquery.get_config('demo')
    config.data.phantom.task = 'spleen'
    with pytest.raises(UserError, match="phantom task 'spleen' is unknown"):
        planned_manifest(config, 'finetune')
