"""Tumours found by their texts, against Eq. 11 written out."""

import json

import jax
import numpy as np
import pytest
from threshold_model import make_threshold_model
from zept_model import (
    CHANNELS,
    LABELS,
    PATCH,
    QUERIES,
    make_zept_model,
    outputs_of,
    random_hu,
    read_map,
    save_case,
    write_texts,
)

from maxquery_jax.errors import UserError
from maxquery_jax.inference.ensemble import combine
from maxquery_jax.inference.predict import predict
from maxquery_jax.inference.zero_shot import find_by_text
from maxquery_jax.report.labels import LabelTable

TEXTS = (*QUERIES, 'colon', 'colon_tumour', 'kidney_tumour')


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp('texts') / 'own.safetensors'
    return path, write_texts(path, TEXTS)


@pytest.fixture(scope='module')
def model(texts):
    return make_zept_model(2, knowledge=texts[0])


@pytest.fixture(scope='module')
def tiles():
    return random_hu((2, *PATCH, len(CHANNELS)), seed=1)


@pytest.fixture(scope='module')
def outputs(model, tiles):
    return outputs_of(model, tiles)


def masks_by_hand(outputs, vectors, column):
    """Eq. 11 for the two advanced queries, then the weighted sum of their masks, less 0.5."""
    found = 0.0
    for query in (3, 4):
        q = np.asarray(outputs.knowledge_queries[:, query], np.float64)
        cosine = q @ vectors.T / np.linalg.norm(q, axis=-1)[:, None]
        e = np.exp(cosine / np.linalg.norm(vectors, axis=-1) / float(outputs.temperature))
        share = (e / e.sum(-1, keepdims=True))[:, column]
        mask = 1 / (1 + np.exp(-outputs.mask_logits[:, query].astype(np.float64)))
        found = found + share[:, None, None, None] * mask
    return found - 0.5


def test_masks_of_two_classes(model, texts, tiles, outputs):
    """One is a label of the model, the other becomes one; American spelling is understood."""
    by_text = find_by_text(model, ['colon_tumor', 'pancreas_tumour'])
    assert by_text.labels[4] == {**LABELS[4], 'predicted': True}
    assert by_text.labels[3] == {**LABELS[3], 'predicted': False}  # not asked for
    assert by_text.labels[6] == {'id': 6, 'name': 'colon_tumour', 'role': 'ood', 'predicted': True}
    assert by_text.tumour_ids == (4, 6) and by_text.num_logits == 7
    assert by_text.texts == {
        n: texts[1].text_hashes[n] for n in ('colon_tumour', 'pancreas_tumour')
    }
    logits, scores = jax.jit(by_text.forward)(model.params, tiles)
    vectors = texts[1].vectors.astype(np.float64)
    for label, name in ((4, 'pancreas_tumour'), (6, 'colon_tumour')):
        expected = masks_by_hand(outputs, vectors, TEXTS.index(name))
        np.testing.assert_allclose(logits[..., label], expected, atol=2e-5)
    np.testing.assert_allclose(logits[..., 1], outputs.mask_logits[:, 1], rtol=1e-4, atol=1e-4)
    assert (np.asarray(logits[..., [3, 5]]) == -1e4).all() and not logits[..., 0].any()
    assert set(scores) == set(model.score_names)


def test_a_file_of_further_texts(model, texts, tiles, outputs, tmp_path):
    """A new class competes with all texts of the model; a known name takes the file's text."""
    path = tmp_path / 'more.safetensors'
    more = write_texts(path, ['adrenal metastasis', 'colon_tumour'], seed=7)
    by_text = find_by_text(model, ['adrenal metastasis'], path)
    assert by_text.labels[6]['name'] == 'adrenal metastasis'
    own = [TEXTS.index(name) for name in TEXTS if name != 'colon_tumour']
    vectors = np.concatenate([texts[1].vectors[own], more.vectors]).astype(np.float64)
    expected = masks_by_hand(outputs, vectors, len(own))
    logits, _ = jax.jit(by_text.forward)(model.params, tiles)
    np.testing.assert_allclose(logits[..., 6], expected, atol=2e-5)


def test_prediction_and_record(model, tmp_path):
    """Other classes are another prediction of the same model."""
    _, source = save_case(tmp_path, PATCH)
    out = tmp_path / 'out'
    settings = []
    for classes in (['colon_tumour'], ['pancreas_tumour', 'colon_tumour']):
        (record,) = predict(model, source, out, classes=classes)
        content = json.loads(record.read_text())
        table = LabelTable.from_json(content['labels'], 'x.json')
        assert [table.names[i] for i in table.zero_shot_ids] == sorted(classes, reverse=True)
        assert list(content['settings']['texts']) == classes
        assert set(np.unique(read_map(out / 'x_seg.nii.gz'))) <= {0, 1, 2, *table.zero_shot_ids}
        settings.append(content['settings'])
    assert settings[0] != settings[1]


def test_members_of_an_ensemble_each_find_it(model):
    both = combine([model, make_zept_model(2, knowledge=model.zept.knowledge)])
    by_text = find_by_text(both, ['colon_tumour'])
    assert len(by_text.members) == 2 and by_text.tumour_ids == (6,)
    assert by_text.texts and by_text.num_logits == 7


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ([], 'name the classes to find'),
        (['liver_tumours'], "'liver_tumours' has no text; did you mean liver_tumour"),
        (['colon'], "'colon' is an organ"),
        (['colon_tumour', 'colon tumor'], 'names a class twice'),
    ],
)
def test_classes_that_do_not_fit(model, classes, message):
    with pytest.raises(UserError, match=message):
        find_by_text(model, classes)


def test_models_and_files_that_do_not_fit(model, texts, tmp_path):
    for other in (make_zept_model(1, knowledge=texts[0]), make_threshold_model()):
        with pytest.raises(UserError, match='needs a ZePT after stage II'):
            find_by_text(other, ['colon_tumour'])
    path = tmp_path / 'other.safetensors'
    write_texts(path, ['colon_tumour'], encoder='another')
    with pytest.raises(UserError, match="encoder is 'another', the model was trained with 'toy'"):
        find_by_text(model, ['colon_tumour'], path)
