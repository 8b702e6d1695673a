"""Mixtures of stores: opened from a config, masked where one annotates less than another."""

import jax
import numpy as np
import pytest

from configs import maxquery
from maxquery_jax.data.store import Manifest
from maxquery_jax.data.store_write import StoreWriter
from maxquery_jax.errors import UserError
from maxquery_jax.parallel import sharding
from maxquery_jax.parallel.mesh import make_mesh, mesh_context
from maxquery_jax.train.data import open_data
from maxquery_jax.train.rngs import stream
from maxquery_jax.train.stage import build_stage
from maxquery_jax.train.state import init_params

LABELS = (
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'liver', 'role': 'organ'},
    {'id': 2, 'name': 'spleen', 'role': 'organ'},
    {'id': 3, 'name': 'cyst', 'role': 'tumour'},
)
SHAPE = (16, 32, 32)


def write_store(path, annotated=('liver', 'spleen', 'cyst'), num_cases=2, num_val=0, **changes):
    """Noise with a block per annotated class."""
    writer = StoreWriter(path)
    cases = {}
    for index in range(num_cases):
        rng = np.random.default_rng(index)
        image = rng.integers(-200, 300, (*SHAPE, 1)).astype(np.int16)
        label = np.zeros(SHAPE, np.uint8)
        for record in LABELS[1:]:
            if record['name'] in annotated:
                label[4 * record['id'] - 4 : 4 * record['id'], 4:28, 4:28] = record['id']
        written = writer.write_case(f'c{index}', image, label)
        cases[f'c{index}'] = {
            'shape': written['shape'],
            'native': {'shape': list(SHAPE), 'spacing_mm': [5, 4, 4], 'affine': np.eye(4).tolist()},
            'source': {'image': [f'c{index}.nii.gz'], 'label': None},
            'sha256': {},
            'voxels': written['voxels'],
        }
    values = {'lower': [-200.0], 'upper': [300.0], 'shift': [0.0], 'scale': [100.0]}
    fields = {
        'dataset': path.name,
        'spacing_mm': (5.0, 4.0, 4.0),
        'channels': ('venous',),
        'intensity': {**values, 'method': 'window'},
        'labels': LABELS,
        'label_map': {str(i): i for i in range(4)},
        'annotated': annotated,
        'splits': {
            'train': tuple(cases)[num_val:],
            'val': tuple(cases)[:num_val],
            'test': (),
        },
        'cases': cases,
        'source': 'raw',
    }
    writer.finish(Manifest(**{**fields, **changes}))
    return str(path)


def make_config(stores, weights=()):
    config = maxquery.get_config('demo')
    config.data.stores, config.data.weights = tuple(stores), tuple(weights)
    config.data.patch_size = SHAPE
    config.model.backbone.base_features = 4
    config.model.backbone.max_stages = 2
    config.model.conv_form = 'plain'
    config.model.decoder.output_strides = (2,)
    config.model.decoder.query_dim = 16
    config.model.decoder.embed_dim = 8
    config.model.decoder.ffn_dim = 16
    config.model.decoder.drop_path = 0.0
    config.finetune.optim.frozen_epochs = 0
    for stage in ('pretrain', 'finetune'):
        config[stage].optim.name = 'sgd'
        config[stage].optim.weight_decay = 0.0  # so that only the loss can move a weight
        config[stage].optim.learning_rate = 0.1
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('stores')
    write_store(path / 'whole', num_val=1)
    write_store(path / 'liver_only', ('liver',), num_cases=3)
    return path


@pytest.fixture(scope='module')
def mixture(folder):
    """Both stores, alternating."""
    config = make_config([folder / 'whole', folder / 'liver_only'], (1, 1))
    return config, open_data(config, folder)


def test_a_mixture_opens_with_its_weights(folder, mixture):
    config, data = mixture
    assert [store.manifest.dataset for store in data.stores] == ['whole', 'liver_only']
    assert data.is_partial and data.num_cases('train') == 4 and data.num_cases('val') == 1
    with data.batches(config, 'train', crop_size=(8, 8, 8)) as batches:
        batch = [next(batches) for _ in range(6)]
    of_whole = np.concatenate([b['case'] for b in batch]) == 0
    assert of_whole.mean() == 0.5
    masks = np.concatenate([b['class_mask'] for b in batch])
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks[of_whole], np.ones((6, 4), bool))
    np.testing.assert_array_equal(masks[~of_whole], [[True, True, False, False]] * 6)
    with data.batches(config, 'val', crop_size=(8, 8, 8)) as batches:  # one store has cases
        assert set(next(batches)['case']) == {0}


def test_cases_smaller_than_the_patch_are_counted(mixture):
    _, data = mixture
    depth, height, width = data.stores[0].shape(data.stores[0].case_ids('train')[0])
    assert data.count_smaller((depth, height, width)) == 0
    assert data.count_smaller((1, height + 1, 1)) == data.num_cases('train') == 4


def test_a_fully_annotated_mixture_has_no_mask(folder):
    config = make_config([folder / 'whole', folder / 'whole'])
    data = open_data(config, folder)
    assert not data.is_partial
    with data.batches(config, 'train', crop_size=(8, 8, 8)) as batches:
        assert set(next(batches)) == {'image', 'label', 'case'}


def test_roles_come_from_the_config(folder):
    config = make_config([folder / 'whole'])
    config.data.oversample_roles = ('tumour',)
    data = open_data(config, folder)
    with data.batches(config, 'train', crop_size=(1, 1, 1), oversample_rate=1.0) as batches:
        assert {int(v) for _ in range(8) for v in next(batches)['label'].ravel()} == {3}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'store': 'whole'}, 'data.store and data.stores are both set'),
        ({'weights': (1, 1, 1)}, 'one number for each of the 2 stores'),
        ({'stores': ('whole', 'other_window')}, r'intensity differ .*\(the same --window'),
        ({'stores': ('whole', 'other_spacing')}, r'spacing_mm differ .*\(the same --spacing'),
        ({'stores': ('whole', 'untrained')}, 'no training cases'),
        ({'stores': (), 'phantom': {}}, 'needs data: name a store'),
    ],
)
def test_faults_of_a_mixture(folder, tmp_path, changes, message):
    intensity = {'lower': [0.0], 'upper': [1.0], 'shift': [0.0], 'scale': [1.0], 'method': 'window'}
    write_store(tmp_path / 'other_window', intensity=intensity)
    write_store(tmp_path / 'other_spacing', spacing_mm=(1.0, 1.0, 1.0))
    write_store(tmp_path / 'untrained', num_val=2)
    config = make_config([folder / 'whole', folder / 'liver_only'])
    for name, value in changes.items():
        if name == 'stores':
            parents = {'whole': folder}
            value = tuple(str(parents.get(v, tmp_path) / v) for v in value)
        config.data[name] = value if name != 'phantom' else type(config)(value)
    with pytest.raises(UserError, match=message):
        open_data(config, tmp_path)


class Step:
    """A stage's real training step, compiled once, as the change it makes to fresh parameters."""

    def __init__(self, config, data, stage_name):
        self.config, self.data, self.mesh = config, data, make_mesh(1, 1, 1)
        with mesh_context(self.mesh):
            self.stage = build_stage(
                config, stage_name, data.manifest, self.mesh, is_partial=data.is_partial
            )
            shape = (1, *self.stage.patch_size, 1)
            self.params = init_params(self.stage.model, shape, stream(0, 'init', 0))
            # Compiling is nearly all the time; the values need no fast code.
            options = {'xla_backend_optimization_level': 0}
            self.step = jax.jit(self.stage.train_step, compiler_options=options)

    def __call__(self, rows=None):
        """Changes by parameter path, and metrics, for these rows of the first batch."""
        stage, mesh = self.stage, self.mesh
        options = {'crop_size': stage.crop_size, 'patch_size': stage.patch_size}
        with self.data.batches(self.config, 'train', **options) as batches:
            host = next(batches)
        if rows is None:  # the rows of the store that annotates less, twice
            rows = np.flatnonzero(~host['class_mask'].all(axis=1)).repeat(2)
        host = {name: np.ascontiguousarray(value[rows]) for name, value in host.items()}
        with mesh_context(mesh):
            batch = stage.augment_step(sharding.put_batch(host, mesh), 0)
            want = stage.abstract_batch(len(rows), 1, mesh)
            assert 'class_mask' in want and set(want) == set(batch)
            for name, x in want.items():
                assert (x.shape, x.dtype) == (batch[name].shape, batch[name].dtype)
            state = stage.layout.create(self.params)
            after, metrics = self.step(state, batch, stage.dropout_key)
        change = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, self.params)
        leaves = jax.tree_util.tree_leaves_with_path(change)
        changes = {'/'.join(k.key for k in path): leaf for path, leaf in leaves}
        return changes, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope='module')
def pretrain(mixture):
    config, data = mixture
    return Step(config, data, 'pretrain')


def by_class(changes, pattern):
    """Weights of the layers that have one output per class."""
    return {k: v for k, v in changes.items() if pattern in k and v.shape[-1] == len(LABELS)}


def test_no_gradient_reaches_what_is_not_annotated(pretrain):
    """One real step of the tiny UNet leaves its head's columns of unannotated classes as is."""
    changes, metrics = pretrain()
    heads = by_class(changes, 'head')
    assert heads and np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    for name, change in heads.items():
        assert (change[..., 2:] == 0).all(), name
    assert any((change[..., :2] != 0).all() for change in heads.values())
    mixed, _ = pretrain(np.array([0, 1]))
    assert any((change[..., 2:] != 0).any() for change in by_class(mixed, 'head').values())


def test_no_gradient_reaches_class_logits_of_queries(mixture):
    """The same for the query stage, whose class logits come from its class head."""
    config, data = mixture
    config = config.copy_and_resolve_references()
    config.augment.enabled = False
    changes, metrics = Step(config, data, 'finetune')()
    heads = by_class(changes, 'class')
    assert heads and np.isfinite(metrics['loss'])
    for name, change in heads.items():
        assert (change[..., 2:] == 0).all(), name
    assert any((change[..., :2] != 0).any() for change in heads.values())


def test_accumulation_of_masked_batches_equals_the_whole(mixture, pretrain):
    config, data = mixture
    config = config.copy_and_resolve_references()
    config.pretrain.accumulate = 2
    rows = np.array([0, 1])
    parts, _ = Step(config, data, 'pretrain')(rows)
    for name, change in pretrain(rows)[0].items():
        scale = np.abs(change).max()
        np.testing.assert_allclose(parts[name], change, atol=1e-3 * scale + 1e-7, err_msg=name)


def test_the_window_of_a_phantom_is_its_stores(tmp_path):
    config = maxquery.get_config('demo')
    config.data.phantom.update(
        {
            'num_train': 1,
            'num_val': 1,
            'num_test_inlier': 0,
            'num_test_ood': 0,
            'shape_zyx': (8, 16, 16),
            'spacing_mm': (12.0, 12.0, 12.0),
            'phases': ('venous',),
            'window_hu': (-175.0, 250.0),
        }
    )
    intensity = open_data(config, tmp_path).manifest.intensity
    assert intensity['method'] == 'window'
    assert (intensity['lower'], intensity['upper']) == ([-175.0], [250.0])
    config.data.phantom.window_hu = (-160.0, 240.0)
    with pytest.raises(UserError, match=r'another data\.phantom'):
        open_data(config, tmp_path)
