"""ZePT's masks become one label map: channels per label, nested decision, records, ensembles."""

import functools
import json

import jax
import numpy as np
import pytest
from zept_model import (
    CHANNELS,
    INTENSITY,
    LABELS,
    PATCH,
    SPACING,
    TABLE,
    make_zept_model,
    outputs_of,
    random_hu,
    read_map,
    save_case,
)

from maxquery_jax.errors import UserError
from maxquery_jax.inference.decision import NestedDecision, is_predicted, mark_predicted
from maxquery_jax.inference.ensemble import combine
from maxquery_jax.inference.predict import predict
from maxquery_jax.inference.sliding_window import plan_tiles, predict_volume
from maxquery_jax.inference.zept_forward import make_zept_forward
from maxquery_jax.report.labels import LabelTable
from tests.models.test_zept import build

TILES = (2, *PATCH, len(CHANNELS))
QUERY_OF_LABEL = {1: 1, 2: 0, 3: 4, 4: 3}  # by the names in zept_model


@pytest.fixture(scope='module')
def tiles():
    return random_hu(TILES)


@functools.cache
def model_of(stage):
    return make_zept_model(stage)


@functools.cache
def forward_of(stage):
    return jax.jit(model_of(stage).forward)


@functools.cache
def outputs_at(stage):
    return outputs_of(model_of(stage), random_hu(TILES))


def decide_slowly(logits):
    """The decision of a voxel, as a sentence: seen tumour 3, unseen tumour 4, organs 1 and 2."""
    label = np.zeros(logits.shape[:-1], int)
    for place in np.ndindex(label.shape):
        for ids in ((3,), (4,), (1, 2)):
            best = max(ids, key=lambda i: logits[place][i])
            if logits[place][best] > 0:
                label[place] = best
                break
    return label


@pytest.mark.parametrize('stage', [1, 2])
def test_a_channel_per_label(tiles, stage):
    model = model_of(stage)
    masks = outputs_at(stage).mask_logits
    logits, _ = forward_of(stage)(model.params, tiles)
    logits = np.asarray(logits)
    assert logits.shape == (2, *PATCH, len(LABELS)) == (2, *PATCH, model.num_logits)
    assert not logits[..., 0].any()
    for label in range(1, len(LABELS)):
        query = QUERY_OF_LABEL.get(label, 99)
        if query < masks.shape[1]:
            np.testing.assert_allclose(logits[..., label], masks[:, query], rtol=1e-4, atol=1e-4)
        else:
            assert (logits[..., label] == -1e4).all()


def test_scores(tiles):
    outputs = outputs_at(2)
    _, scores = forward_of(2)(model_of(2).params, tiles)
    organs, tumours = outputs.mask_logits[:, :3], outputs.mask_logits[:, 3:]
    expected = {
        'query_logit': -organs.max(1),
        'tumour_logit': tumours.max(1),
        'tumour_anomaly_logit': tumours.max(1) - organs.max(1),
        'seen_logit': tumours[:, 1],
        'seen_anomaly_logit': tumours[:, 1] - organs.max(1),
        'unseen_logit': tumours[:, 0],
    }
    assert set(scores) == set(expected) and model_of(2).score_names == tuple(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-4, atol=1e-4)
    assert model_of(1).score_names == ('query_logit',)
    with pytest.raises(UserError, match='has no score .tumour_logit.'):
        model_of(1).choose_scores(['tumour_logit'])


def test_a_network_that_adds_the_anomaly_map_itself_has_it_once(tiles):
    """`anomaly_logit_bias`: the tumours' logits are the sum already."""
    plain = model_of(2)
    network = build(hosts=((0,), (0, 2)), anomaly_logit_bias=True)
    forward = make_zept_forward(network, INTENSITY, len(LABELS), TABLE, plain.score_names)
    _, scores = jax.jit(forward)(plain.params, tiles)
    _, others = forward_of(2)(plain.params, tiles)
    expected = np.asarray(others['tumour_anomaly_logit'])
    for name in ('tumour_logit', 'tumour_anomaly_logit'):
        np.testing.assert_allclose(scores[name], expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(others['tumour_logit'], expected, atol=0.1)


def test_the_sum_of_the_maps_is_the_map_of_the_sum(predicted):
    """Of a whole scan, over whose tiles the maps are means; files hold half precision."""
    _, folder, _ = predicted
    parts = [read_map(folder / f'x_ood{end}.nii.gz') for end in ('', '-tumour_logit')]
    found = read_map(folder / 'x_ood-tumour_anomaly_logit.nii.gz')
    np.testing.assert_allclose(found, sum(parts), rtol=2e-3, atol=2e-3 * np.abs(parts).max())


def test_which_classes_are_predicted():
    zero_shot = model_of(2)
    assert [label['id'] for label in zero_shot.predicted_labels] == [0, 1, 2, 3, 4]
    assert zero_shot.labels[4] == {**LABELS[4], 'predicted': True}
    assert zero_shot.labels[:4] == tuple(LABELS[:4]) and zero_shot.labels[5] == LABELS[5]
    assert zero_shot.class_groups == (0, 1, 1, 2, 2) and zero_shot.tumour_ids == (3, 4)
    assert zero_shot.decide == NestedDecision((1, 2), (3,), (4,), ((1,),))
    organs = model_of(1)
    assert organs.labels[3] == {**LABELS[3], 'predicted': False}
    assert [label['id'] for label in organs.predicted_labels] == [0, 1, 2]
    assert organs.tumour_ids == () and organs.decide == NestedDecision((1, 2), ())
    # Marks do not pile up, and records that say what their role says anyway stay as they are.
    assert mark_predicted(zero_shot.labels, (1, 2, 3)) == tuple(LABELS)
    assert [is_predicted(label) for label in LABELS] == [True] * 4 + [False] * 2


def test_decision():
    logits = np.random.default_rng(1).normal(size=(5, 6, 7, 6))
    logits[..., 5] = 100.0  # a label nobody predicts
    found = NestedDecision((1, 2), (3,), (4,))(logits)
    np.testing.assert_array_equal(found, decide_slowly(logits))
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1, 2, 3, 4}
    assert NestedDecision((1,), ())(np.zeros((2, 6))).tolist() == [0, 0]  # 0.5 is not above 0.5


def test_an_unseen_tumour_takes_no_voxel_of_a_seen_one():
    decide = NestedDecision((1,), (2, 3), (4, 5))
    logits = [
        [0.0, 9.0, 0.1, -1.0, 8.0, 2.0],  # the seen tumour 2, though the unseen 4 is larger
        [0.0, 9.0, -1.0, -1.0, 1.0, 2.0],  # no seen one: the larger unseen one
        [0.0, 9.0, -1.0, -1.0, -1.0, -1.0],
    ]
    assert decide(np.array(logits)).tolist() == [2, 5, 1]


def test_unseen_tumours_that_tie_are_told_apart_by_their_organs():
    decide = NestedDecision((1, 2), (3,), (4, 5, 6), ((1,), (2,), ()))
    logits = [
        [0.0, 1.0, 4.0, -1.0, 8.0, 8.0, 8.0],  # in organ 2
        [0.0, -1.0, -4.0, -1.0, 8.0, 8.0, 8.0],  # in none, nearest to organ 1
        [0.0, -1.0, 4.0, -1.0, 8.0, 7.9, 8.0],  # 5 is no tie; 6 has no organ
        [0.0, -1.0, 4.0, -1.0, -8.0, -8.0, 0.1],
        [0.0, 1.0, 4.0, -1.0, -8.0, -8.0, -8.0],
    ]
    assert decide(np.array(logits, np.float32)).tolist() == [5, 4, 4, 6, 2]


@pytest.fixture(scope='module')
def predicted(tmp_path_factory):
    """A scan of two tiles, predicted with every score."""
    folder = tmp_path_factory.mktemp('zept')
    hu, source = save_case(folder, (6, 8, 8), seed=3)
    (record,) = predict(model_of(2), source, folder / 'out', scores=['all'], step_size=0.5)
    return hu, folder / 'out', json.loads(record.read_text())


def test_means_over_tiles_are_decided(predicted):
    volume, folder, _ = predicted
    model = model_of(2)
    program = model.program(model.score_names)
    plan = plan_tiles(volume.shape[:3], PATCH, 0.5)
    assert plan.num_tiles == 2
    masks = []

    def keep(logits):
        masks.append(logits.copy())
        return model.decide(logits)

    label, scores = predict_volume(
        volume, lambda t: program(model.params, t), plan, num_classes=model.num_logits,
        score_names=model.score_names, lower=[-90.0] * 2, decide=keep,
    )  # fmt: skip
    np.testing.assert_array_equal(label, decide_slowly(np.stack(masks)))
    np.testing.assert_array_equal(read_map(folder / 'x_seg.nii.gz'), label)
    assert {3, 4} <= set(np.unique(label)), 'the weights should predict both tumours'
    unseen = read_map(folder / 'x_ood-unseen_logit.nii.gz')
    np.testing.assert_array_equal(unseen, scores['unseen_logit'])


def test_the_record_names_zero_shot_classes(predicted):
    _, folder, content = predicted
    label = read_map(folder / 'x_seg.nii.gz')
    names = ['pancreas', 'liver', 'liver_tumor', 'pancreas_tumour']
    voxel_ml = np.prod(SPACING) / 1000
    assert content['volumes_ml'] == pytest.approx(
        {name: (label == i).sum() * voxel_ml for i, name in enumerate(names, start=1)}
    )
    assert content['labels'][4] == {**LABELS[4], 'predicted': True}
    by_lesion = sum(lesion['volume_ml'] for lesion in content['lesions'])
    assert by_lesion == pytest.approx(np.isin(label, (3, 4)).sum() * voxel_ml)
    assert content['primary_score'] == 'query_logit' and content['case_ood_fallback'] is None
    expected = read_map(folder / 'x_ood.nii.gz')[np.isin(label, (3, 4))].mean()
    assert content['case_ood_score'] == pytest.approx(expected, rel=1e-3)
    table = LabelTable.from_json(content['labels'], 'x.json')
    assert table.zero_shot_ids == (4,) and table.predicted_ids == (1, 2, 3, 4)
    assert table.class_groups == (0, 1, 1, 2, 2, 0) and table.to_json() == content['labels']


def test_stage_one_predicts_organs_only(tmp_path):
    _, source = save_case(tmp_path, PATCH)
    (record,) = predict(model_of(1), source, tmp_path / 'out')
    content = json.loads(record.read_text())
    label = read_map(tmp_path / 'out' / 'x_seg.nii.gz')
    assert set(np.unique(label)) <= {0, 1, 2} and label.any()
    assert list(content['volumes_ml']) == ['pancreas', 'liver'] and content['lesions'] == []
    assert content['case_ood_fallback'] == 'organ'


def test_ensemble_decides_on_the_mean_logits(tiles):
    model = model_of(2)
    other = make_zept_model(2, params=jax.tree.map(lambda x: x * 1.1, model.params))
    both = combine([model, other])
    logits, _ = jax.jit(both.forward)(both.params, tiles)
    parts = [forward_of(2)(m.params, tiles)[0] for m in (model, other)]
    np.testing.assert_allclose(logits, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-4)
    assert both.decide == model.decide and both.num_logits == len(LABELS)
    with pytest.raises(UserError, match='an ensemble needs one labels'):
        combine([model, model_of(1)])
