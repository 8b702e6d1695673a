"""Boxes as prompts: where they land, what the network makes of them, records, and mistakes."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from threshold_model import make_threshold_model, save_scan
from zept_model import (
    AFFINE,
    CHANNELS,
    INTENSITY,
    LABELS,
    PATCH,
    QUERIES,
    SPACING,
    make_network,
    make_zept_model,
    random_hu,
    save_case,
    write_texts,
)

from maxquery_jax.data import orientation, preprocess
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.splits import SplitOptions
from maxquery_jax.errors import UserError
from maxquery_jax.inference.boxes import box_mask, hash_boxes, with_boxes
from maxquery_jax.inference.cases import Case
from maxquery_jax.inference.ensemble import combine
from maxquery_jax.inference.predict import predict
from maxquery_jax.inference.scan import read_grid
from maxquery_jax.inference.tile_program import gaussian_importance
from maxquery_jax.inference.zero_shot import find_by_text
from tests.models.test_zept import build

# File axes (k, i, j) of a scan that grows towards Inferior, Left and Posterior.
LPS = np.array([[0, -2.0, 0, 9], [0, 0, -2.0, 7], [-3.0, 0, 0, 5], [0, 0, 0, 1]])
FLIPS = list(itertools.product((False, True), repeat=3))


@functools.cache
def zept():
    return make_zept_model(network=build(box_margin=0.0))


def show_prompt(params, tiles):
    """A forward whose anomaly map is the prompt of each tile, so that files show where it lies."""
    prompt = tiles[..., -1].astype(jnp.float32)
    assert tiles.shape[-1] == len(CHANNELS) + 1
    return jnp.zeros((*prompt.shape, len(LABELS))), {'query_logit': prompt}


@functools.cache
def showing(**fields):
    return dataclasses.replace(zept(), forward=show_prompt, **fields)


def write_boxes(folder, **boxes):
    path = folder / 'boxes.json'
    path.write_text(json.dumps(boxes))
    return path


def painted(shape, boxes):
    """Voxels of a file inside its boxes, one by one."""
    mask = np.zeros(shape, bool)
    for place in np.ndindex(*shape):
        mask[place] = any(
            all(low <= v < high for v, low, high in zip(place, box[:3], box[3:], strict=True))
            for box in boxes
        )
    return mask


def save_lps(folder, shape=(7, 19, 11)):
    """A case of noise in the file order of `LPS`; what `predict` takes as its source."""
    hu = random_hu((*shape, len(CHANNELS)), seed=5)
    return [[save_scan(folder / f's_{i:04d}.nii', hu[..., i], LPS) for i in range(len(CHANNELS))]]


BOXES = [[1, 2, 0, 3, 9, 4], [5, 17, 6, 7, 19, 11]]


@pytest.mark.parametrize('mirror', [False, True])
def test_boxes_in_file_order_reach_the_right_voxels(tmp_path, mirror):
    """Through orientation, several tiles, padding and mirroring, and back into the file's order."""
    source, shape = save_lps(tmp_path), (7, 19, 11)
    boxes = write_boxes(tmp_path, s=BOXES)
    predict(showing(), source, tmp_path / 'out', boxes=boxes, mirror=mirror)
    found = np.asanyarray(nib.load(tmp_path / 'out/s_ood.nii.gz').dataobj)
    np.testing.assert_allclose(found, painted(shape, BOXES), atol=1e-3)


def test_padding_and_air_are_outside_the_boxes(tmp_path):
    """A scan smaller than a patch, all air: a tile with a box is not the tile of air."""
    paths = [
        save_scan(tmp_path / f'a_{i:04d}.nii', np.full((5, 30, 3), -1000), AFFINE) for i in range(2)
    ]
    boxes = [[0, 20, 0, 5, 24, 3]]
    predict(showing(), [paths], tmp_path / 'out', boxes=write_boxes(tmp_path, a=boxes))
    found = np.asanyarray(nib.load(tmp_path / 'out/a_ood.nii.gz').dataobj)
    np.testing.assert_allclose(found, painted((5, 30, 3), boxes), atol=1e-3)


def grid_of(folder, affine, shape, spacing):
    path = save_scan(folder / 'g.nii', np.zeros(shape), affine)
    return read_grid(Case('g', (path,)), spacing, ReadOptions())


def test_masks_on_another_grid_are_those_of_resampling(tmp_path):
    """Of boxes whose edges lie on both grids; a box between the voxels is not lost."""
    shape, spacing = (8, 12, 10), (6.0, 4.0, 4.0)
    grid = grid_of(tmp_path, LPS, shape, spacing)
    boxes = [(2, 0, 4, 4, 6, 8), (0, 8, 0, 2, 12, 2)]
    canonical = orientation.apply(painted(shape, boxes), grid.orientation)
    expected = preprocess.resample_label(
        canonical.astype(np.uint8), grid.spacing_mm, spacing, method='nearest'
    )
    found = box_mask(boxes, grid, 0.0)
    np.testing.assert_array_equal(found, expected)
    grown = np.zeros_like(found)
    for place in np.ndindex(grown.shape):
        area = tuple(slice(max(0, v - 2), v + 3) for v in place)
        grown[place] = found[area].any()
    np.testing.assert_array_equal(box_mask(boxes, grid, 1.5), grown)  # touched from 2 voxels away
    assert box_mask([(3, 5, 5, 4, 6, 6)], grid, 0.0).sum() == 1
    assert not box_mask([], grid, 5.0).any()


def test_a_box_of_a_sheared_scan_holds_its_voxels(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 1.0  # gantry tilt: each slice lies 1 mm further
    grid = grid_of(tmp_path, affine, (10, 12, 6), SPACING)
    assert grid.orientation.is_sheared
    box = (3, 4, 1, 6, 9, 5)
    mask = box_mask([box], grid, 0.0)
    canonical = orientation.apply(painted((10, 12, 6), [box]), grid.orientation)
    rectified = orientation.rectify(
        canonical.astype(np.uint8), grid.orientation, order=0, fill=0
    ).astype(bool)
    assert rectified.any() and mask[rectified].all() and mask.mean() < 0.5


def test_the_network_sees_the_boxes_also_where_it_is_mirrored():
    """A tile against eight calls of the network by hand, its prompt mirrored with it."""
    tile = random_hu((*PATCH, len(CHANNELS) + 1), seed=2)
    prompt = np.zeros(PATCH, bool)
    prompt[:2, 2:4, 6:8] = True
    tile[..., -1] = prompt
    image = (np.clip(tile[..., :-1].astype(np.float32), -90, 110) - 20) / 50
    network, params = make_network()
    run = jax.jit(lambda x, m: network.apply({'params': params}, x, prompt=m).tumour_logits)

    def mean_of_passes(flips_of_prompt):
        passes = []
        for flip, other in zip(FLIPS, flips_of_prompt, strict=True):
            axes, own = (tuple(i for i in range(3) if f[i]) for f in (flip, other))
            masks = np.asarray(run(np.flip(image, axes)[None], np.flip(prompt, own)[None]))[0]
            passes.append(np.flip(masks.max(axis=0), axes))
        return np.mean(passes, axis=0)

    model = with_boxes(zept())
    found = model.program(('tumour_logit',), mirror=True)(model.params, tile[None])
    found = np.asarray(found)[0, ..., -1] / gaussian_importance(PATCH)
    np.testing.assert_allclose(found, mean_of_passes(FLIPS), rtol=1e-4, atol=1e-4)
    assert np.abs(found - mean_of_passes([FLIPS[0]] * 8)).max() > 2e-3  # it could have failed


def test_records_tell_boxes_apart(tmp_path, capsys):
    source = save_lps(tmp_path)

    def run(*boxes):
        """The record's hash, whether the scan was predicted, and what was noted."""
        given = write_boxes(tmp_path, **({'s': list(boxes)} if boxes else {}))
        (record,) = predict(showing(), source, tmp_path / 'out', boxes=given)
        printed = capsys.readouterr()
        settings = json.loads(record.read_text())['settings']
        return settings['boxes'], 'finished before' not in printed.out, printed.err

    first, is_new, notes = run(*BOXES)
    assert first == hash_boxes(BOXES) and is_new and 'no boxes' not in notes
    assert run(*BOXES[::-1])[:2] == (first, False)
    other, is_new, _ = run(BOXES[0])
    assert other not in (first, None) and is_new
    none, is_new, notes = run()
    assert none == hash_boxes([]) and is_new
    assert notes.count('note:') == 1 and 's_0000.nii: no boxes; the queries of tumours' in notes
    assert run()[1] is False


def test_boxes_and_own_prompts_are_not_taken_for_each_other(tmp_path, capsys):
    _, source = save_case(tmp_path, PATCH)
    predict(zept(), source, tmp_path / 'out')
    (record,) = predict(zept(), source, tmp_path / 'out', boxes=write_boxes(tmp_path))
    assert 'finished before' not in capsys.readouterr().out  # an empty file is asked for, too
    assert json.loads(record.read_text())['settings']['boxes'] == hash_boxes([])


@pytest.mark.parametrize(
    ('boxes', 'message'),
    [
        ({'sx': [BOXES[0]]}, r"boxes.json: case 'sx' is none of the 1 scans; did you mean 's'\?"),
        ({'s': [[0, 0, 0, 7, 19, 12]]}, r"case 's': box .* outside the scan of 7 x 19 x 11 voxels"),
        ({'s': [[-1, 0, 0, 7, 19, 11]]}, r"case 's': box .* outside the scan"),
        ({'s': [[1, 2, 3, 4, 2, 6]]}, r"case 's': box \[1, 2, 3, 4, 2, 6\] has no extent"),
        ({'s': [[1, 2, 3, 4, 5]]}, r"case 's' has no list of boxes; it must be"),
        ({'s': [[1, 2, 3, 4, 5, 6.5]]}, r"case 's' has no list of boxes"),
        ({'s': [1, 2, 3, 4, 5, 6]}, r"case 's' has no list of boxes"),
        ([BOXES], r'boxes.json holds no JSON object; it must be'),
        (None, r'boxes.json does not exist; it must be'),
        ('{', r'boxes.json is not JSON .*; it must be'),
        ('truth', r'--boxes=truth takes .* of a split: give --split'),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, boxes, message):
    source, path = save_lps(tmp_path), tmp_path / 'boxes.json'
    if boxes is not None:
        path.write_text(boxes if boxes == '{' else json.dumps(boxes))
    with pytest.raises(UserError, match=message) as caught:
        given = 'truth' if boxes == 'truth' else path
        predict(showing(), source, tmp_path / 'out', boxes=given)
    assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


def test_models_that_take_no_boxes(tmp_path):
    source, boxes = save_lps(tmp_path), write_boxes(tmp_path, s=BOXES)
    plain = make_threshold_model(channels=CHANNELS, spacing_mm=SPACING)
    first, second = make_zept_model(1), zept()
    margin = make_zept_model(network=build(box_margin=2.0))
    unguided = make_zept_model(network=build(qrd=False))
    for model, message in (
        (plain, r'--boxes needs a ZePT after stage II, threshold .* is none'),
        (first, r'--boxes needs a ZePT after stage II, zept \(stage1, step 3\) is none'),
        (unguided, r'was trained without the decoder that prompts guide \(qrd\); drop --boxes'),
        (combine([second, unguided]), r'was trained without the decoder'),
        (combine([second, margin]), r'needs one margin of --boxes \(model.zept.box_margin\)'),
    ):
        with pytest.raises(UserError, match=message):
            predict(model, source, tmp_path / 'out', boxes=boxes)
    assert not (tmp_path / 'out').exists()


def test_members_and_texts_take_boxes_too(tmp_path):
    """The prompt reaches every member of an ensemble, and a model that finds tumours by texts."""
    tiles = random_hu((1, *PATCH, len(CHANNELS) + 1), seed=1)
    tiles[..., -1] = 0
    tiles[:, 1:3, 2:5, 4:8, -1] = 1
    whole = tiles.copy()
    whole[..., -1] = 1
    network = build(box_margin=0.0)
    write_texts(tmp_path / 't.safetensors', (*QUERIES, 'colon_tumour'))
    model = make_zept_model(network=network, knowledge=tmp_path / 't.safetensors')
    both = with_boxes(combine([model, make_zept_model(network=network)]))
    by_text = with_boxes(find_by_text(model, ['colon_tumour']))
    for prompted in (both, by_text):
        assert prompted.prompt_margin == 0.0
        assert prompted.tile_lower == (*INTENSITY['lower'], 0.0)
        run = jax.jit(prompted.forward)
        one, two = (np.asarray(run(prompted.params, t)[0]) for t in (tiles, whole))
        assert np.abs(one - two).max() > 1e-3
    assert model.tile_lower == tuple(INTENSITY['lower'])


SPLITS = {'train': ['a'], 'val': ['b'], 'test': ['c', 'd']}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    """Scans in the order of `LPS` whose labels are stored canonically; d shows no tumour."""
    folder = tmp_path_factory.mktemp('truth')
    raw, shape = folder / 'raw', (7, 19, 11)
    for name in ('imagesTr', 'labelsTr'):
        (raw / name).mkdir(parents=True)
    place = orientation.find_orientation(LPS, shape)
    z_last = place.affine[:, [2, 1, 0, 3]]  # indices (x, y, z)
    label = np.zeros(shape, np.uint8)
    label[1:6, 2:18, 2:10] = 1
    label[2, 4, 4] = label[3, 5, 5] = 2  # touch by a corner
    label[4, 5, 5] = 3  # of another kind, touching them: one box
    label[5, 12:14, 7] = 3
    for seed, name in enumerate('abcd'):
        for i in range(len(CHANNELS)):
            path = raw / 'imagesTr' / f'{name}_{i:04d}.nii.gz'
            save_scan(path, random_hu(shape, 10 * seed + i), LPS)
        own = np.minimum(label, 1) if name == 'd' else label
        canonical = orientation.apply(own, place).transpose(2, 1, 0)
        save_scan(raw / 'labelsTr' / f'{name}.nii.gz', canonical, z_last, dtype=np.uint8)
    listing = {
        'channel_names': dict(enumerate(CHANNELS)),
        'labels': {'background': 0, 'liver': 1, 'liver tumour': 2, 'pancreas tumour': 3},
        'numTraining': 4,
        'file_ending': '.nii.gz',
    }
    (raw / 'dataset.json').write_text(json.dumps(listing))
    prepare(
        'decathlon',
        raw,
        folder / 'store',
        spacing_mm=SPACING,
        split=SplitOptions(given=SPLITS),
        check=False,
        log=lambda _: None,
        workers=0,
    )
    return folder / 'store'


def test_boxes_of_the_labels_of_a_split(store, tmp_path, capsys):
    model = showing(store=str(store))
    records = predict(model, output=tmp_path / 'out', split='test', boxes='truth')
    boxes = [(2, 4, 4, 5, 6, 6), (5, 12, 7, 6, 14, 8)]
    expected = {'c': painted((7, 19, 11), boxes), 'd': np.zeros((7, 19, 11))}
    for record in records:
        name = record.stem
        found = np.asanyarray(nib.load(tmp_path / f'out/{name}_ood.nii.gz').dataobj)
        np.testing.assert_allclose(found, expected[name], atol=1e-3)
    settings = json.loads(records[0].read_text())['settings']
    assert settings['boxes'] == hash_boxes(boxes)
    assert capsys.readouterr().err.count('no boxes') == 1
    predict(model, output=tmp_path / 'out', split='test', boxes='truth')
    assert capsys.readouterr().out.count('finished before') == 2
    label = store.parent / 'raw/labelsTr/c.nii.gz'
    label.rename(label.with_suffix('.away'))
    try:
        with pytest.raises(UserError, match=r'--boxes=truth: case c has no label .*c.nii.gz; put'):
            predict(model, output=tmp_path / 'new', split='test', boxes='truth')
    finally:
        label.with_suffix('.away').rename(label)
    assert not (tmp_path / 'new').exists()
