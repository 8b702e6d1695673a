"""Query maps: the network's own R and M on a patch, tiles merged, |P| and cosines by definition."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import query_run
from threshold_model import make_threshold_model

from maxquery_jax.errors import UserError
from maxquery_jax.inference.model import load_model
from maxquery_jax.inference.queries import PARTS, QueryReader
from maxquery_jax.inference.sliding_window import plan_tiles, predict_volume
from maxquery_jax.inference.tile_program import TileProgram

# Maps are kept in half precision.
assert_half = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('queries')
    return query_run.write_store(folder / 'store', folder / 'raw')


@pytest.fixture(scope='module')
def run(store, tmp_path_factory):
    return query_run.write_run(tmp_path_factory.mktemp('run'), store)


@pytest.fixture(scope='module')
def reader(run):
    return QueryReader(load_model(run[0]), step_size=0.5)


@pytest.fixture(scope='module')
def direct(run):
    """R, Z, pixel features and centres of the patch-sized case, from the network itself."""
    _, model, params = run
    outputs, features, centers = _network(model, params)
    response = np.asarray(outputs.final.query_response[0], np.float64)
    return response, np.asarray(outputs.seg_logits[0]), features, centers


def _network(model, params):
    """Outputs, pixel features and centres of the patch-sized case."""
    image, _ = query_run.make_scan('known')
    image = (np.clip(image.astype(np.float32), -90, 110) - 20) / 50
    apply = jax.jit(
        functools.partial(model.apply, train=False, capture_intermediates=True, mutable=True)
    )
    outputs, state = apply({'params': params}, image[None, ..., None])
    seen = state['intermediates']
    features = np.asarray(seen['backbone']['__call__'][0].full[0], np.float64)
    centers = np.asarray(seen['cluster_head']['__call__'][0][0][0], np.float64)
    return outputs, features, centers


def _pixels(features, params):
    """P [D, H, W, C] as Eq. 3 says it: a 1x1x1 convolution, InstanceNorm with scale and bias."""
    head = {name: np.asarray(value, np.float64) for name, value in params.items()}
    pixels = features @ head['kernel']
    mean, variance = pixels.mean(axis=(0, 1, 2)), pixels.var(axis=(0, 1, 2))
    return (pixels - mean) / np.sqrt(variance + 1e-5) * head['norm_scale'] + head['norm_bias']


def _check_parts(slab, response, pixels, centers):
    winner = response.argmax(axis=0)
    product = np.einsum('dhwc,dhwc->dhw', pixels, centers[winner])
    length = np.linalg.norm(pixels, axis=-1)
    cosine = product / length / np.linalg.norm(centers, axis=-1)[winner]
    assert_half(slab.parts['length'], length)
    np.testing.assert_allclose(slab.parts['cosine'], cosine, atol=5e-3)
    assert_half(slab.parts['max_response'], response.max(axis=0))


def test_one_tile_is_the_network_itself(run, reader, direct):
    response, z, features, centers = direct
    m = np.exp(response - response.max(axis=0))
    slab = reader.maps('known', 0, query_run.PATCH[0])
    assert_half(slab.queries, m / m.sum(axis=0))
    _check_parts(slab, response, _pixels(features, run[2]['pixel_response']), centers)
    assert_half(slab.parts['category_logit'], -z.max(axis=-1))
    assert (slab.predicted != z.argmax(-1)).mean() < 1e-3


def test_responses_of_one_tile(reader, direct):
    slab = reader.maps('known', 3, 5, quantity='response')
    assert_half(slab.queries, direct[0][:, 3:5])


def test_l2_pixels_at_a_coarser_stride(run, reader):
    _, model, params = run
    options = dataclasses.replace(model.decoder, pixel_norm='l2')
    model = model.clone(decoder=options, pixel_stride=(1, 2, 2))  # with the same parameters
    slab = QueryReader(dataclasses.replace(reader.model, network=model)).maps('known', 2, 5)
    outputs, features, centers = _network(model, params)
    shape = (8, 8, 2, 8, 2, features.shape[-1])
    pixels = _pixels(features.reshape(shape).mean(axis=(2, 4)), params['pixel_response'])
    length = np.linalg.norm(pixels, axis=-1)
    response = np.asarray(outputs.final.query_response[0], np.float64)
    np.testing.assert_allclose(
        response,
        np.einsum('nc,dhwc->ndhw', centers, pixels) / np.sqrt(length**2 + 1e-5),
        atol=1e-3,
    )
    assert slab.queries.shape == (8, 3, 16, 16)
    np.testing.assert_allclose(slab.queries.astype(float).sum(axis=0), 1, atol=2e-3)
    # A 2 x 2 block keeps its mean under trilinear resizing, save at the border.
    blocks = slab.parts['length'].astype(float).reshape(3, 8, 2, 8, 2).mean(axis=(2, 4))
    inner = np.s_[:, 1:-1, 1:-1]
    smooth = length[2:5]
    for axis in (1, 2):  # weights of the neighbours: (1/4 + 1/4) / 2 of each side
        smooth = 0.75 * smooth + 0.125 * (np.roll(smooth, 1, axis) + np.roll(smooth, -1, axis))
    np.testing.assert_allclose(blocks[inner], smooth[inner], atol=5e-3)
    assert np.abs(slab.parts['cosine']).max() <= 1.001


def test_tiles_are_merged_as_in_prediction(reader):
    model = reader.model
    whole = list(reader.slabs('unknown'))
    depth = query_run.SHAPES['unknown'][0]
    assert len(whole) > 1
    starts = np.cumsum([0] + [len(slab.predicted) for slab in whole])
    assert [slab.start for slab in whole] == starts[:-1].tolist() and starts[-1] == depth
    queries = np.concatenate([slab.queries for slab in whole], axis=1).astype(float)
    np.testing.assert_allclose(queries.sum(axis=0), 1, atol=2e-3)
    volume = reader.store.read_image('unknown')
    label, scores = predict_volume(
        volume,
        functools.partial(model.program(model.score_names), model.params),
        plan_tiles(volume.shape[:3], model.patch_size, 0.5),
        num_classes=3,
        score_names=model.score_names,
        lower=model.intensity['lower'],
    )
    for name, score, sign in (
        ('max_response', 'query_logit', -1),
        ('category_logit', 'category_logit', 1),
    ):
        part = np.concatenate([slab.parts[name] for slab in whole])
        assert_half(sign * part, scores[score])
    np.testing.assert_array_equal(np.concatenate([s.predicted for s in whole]), label)
    some = reader.maps('unknown', 7, 11)
    assert_half(some.queries, queries[:, 7:11])
    assert some.start == 7 and set(some.parts) == set(PARTS)
    assert all(values.shape == (4, 20, 24) for values in some.parts.values())


def test_only_tiles_that_touch_the_slices_are_computed(reader, monkeypatch):
    calls = []
    call = TileProgram.__call__
    monkeypatch.setattr(
        TileProgram, '__call__', lambda self, *args: calls.append(1) or call(self, *args)
    )
    plan = plan_tiles(query_run.SHAPES['unknown'], query_run.PATCH, 0.5)
    rows = [z for z in plan.starts[0] if z <= 0 < z + 8]
    assert len(rows) == 1 and len(plan.starts[0]) == 4
    reader.maps('unknown', 0, 1)
    assert len(calls) == plan.num_tiles // 4


def test_case_smaller_than_the_patch(reader):
    slab = reader.maps('both', 0, 6)
    assert slab.queries.shape == (8, 6, 18, 16)
    np.testing.assert_allclose(slab.queries.astype(float).sum(axis=0), 1, atol=2e-3)
    for start, stop in ((-1, 2), (2, 2), (4, 7)):
        with pytest.raises(ValueError, match='are not in both, which has 6'):
            reader.maps('both', start, stop)


def test_what_has_no_queries_is_refused(run, store, reader, tmp_path):
    path, _, _ = run
    first_stage = load_model(path, 'pretrain')
    assert first_stage.query_groups == () and reader.model.query_groups == query_run.GROUPS
    assert reader.model.qd_weight == pytest.approx(0.1)
    for model in (first_stage, make_threshold_model()):
        with pytest.raises(UserError, match=r"has no queries: .* objective 'maxquery'"):
            QueryReader(model)
    nowhere = dataclasses.replace(reader.model, store=str(tmp_path / 'gone'))
    with pytest.raises(UserError, match=r'gone: no patch store there'):
        QueryReader(nowhere)
    with pytest.raises(UserError, match='names no store'):
        QueryReader(dataclasses.replace(reader.model, store=''))
    other = dataclasses.replace(reader.model, spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match='compare runs of one store'):
        QueryReader(other, reader.store)
