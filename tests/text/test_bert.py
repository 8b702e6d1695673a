"""Oracle: vectors that transformers' BertModel made of a tiny BERT (tests/golden/make_bert.py)."""

import json
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.text import tensorfile
from maxquery_jax.text.bert import Bert, load_bert, pool, read_config

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'bert'
FILES = ('config.json', 'model.safetensors')


@pytest.fixture(scope='module')
def expected():
    with np.load(GOLDEN / 'expected.npz') as data:
        return dict(data)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def change_config(folder, **fields):
    path = folder / 'config.json'
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def rewrite(folder, change):
    tensors, _ = tensorfile.read_tensors(folder / 'model.safetensors', fix='')
    tensorfile.write_tensors(folder / 'model.safetensors', change(tensors), {})


def run(folder, expected, **options):
    model, params = load_bert(folder)
    return jax.jit(model.apply)(params, expected['tokens'], expected['mask'], **options)


def test_vectors_match_the_peer(expected):
    kept = expected['mask']
    hidden = run(GOLDEN, expected)
    np.testing.assert_allclose(hidden[kept], expected['hidden'][kept], atol=1e-5)
    hidden = run(GOLDEN, expected, segments=expected['segments'])
    np.testing.assert_allclose(hidden[kept], expected['hidden_segments'][kept], atol=1e-5)
    assert np.abs(expected['hidden'][kept] - expected['hidden_segments'][kept]).max() > 0.1


def test_pooling_is_that_of_the_kept_tokens(expected):
    kept = expected['mask']
    hidden = run(GOLDEN, expected)
    means = [row[:n].mean(axis=0) for row, n in zip(expected['hidden'], kept.sum(1), strict=True)]
    np.testing.assert_allclose(pool(hidden, kept, 'mean'), np.stack(means), atol=1e-5)
    np.testing.assert_allclose(pool(hidden, kept, 'cls'), expected['hidden'][:, 0], atol=1e-5)
    with pytest.raises(UserError, match="pooling 'max' is unknown"):
        pool(hidden, kept, 'max')


def test_padding_and_neighbours_change_nothing(expected):
    model, params = load_bert(GOLDEN)
    row, length = 1, 5
    apply = jax.jit(model.apply)
    alone = apply(params, expected['tokens'][row : row + 1, :length], np.ones((1, length), bool))
    tokens = expected['tokens'].copy()
    tokens[row, length:] = 7  # another padding
    together = apply(params, tokens, expected['mask'])
    np.testing.assert_allclose(together[row, :length], alone[0], atol=2e-6)


def test_parameters_have_logical_axes_and_the_loaded_names(expected):
    config = read_config(GOLDEN)
    inputs = expected['tokens'], expected['mask']
    boxed = jax.eval_shape(lambda: Bert(config=config).init(jax.random.key(0), *inputs))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
    shapes = jax.tree.map(lambda x: x.shape, nn.meta.unbox(boxed))
    assert jax.tree.map(lambda x: x.shape, load_bert(GOLDEN)[1]) == shapes


def test_published_variants_of_names_and_dtypes_load(folder, expected):
    def legacy(tensors):
        heads = {'cls.predictions.bias': np.zeros(3, np.float32)}
        buffers = {'bert.embeddings.position_ids': np.arange(40)[None]}
        names = {
            name: name.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta')
            for name in tensors
        }
        assert any(name.endswith('gamma') for name in names.values())
        return {f'bert.{names[n]}': x for n, x in tensors.items()} | heads | buffers

    rewrite(folder, legacy)
    change_config(folder, model_type=None)
    np.testing.assert_array_equal(run(folder, expected), run(GOLDEN, expected))
    rewrite(folder, lambda tensors: {n: x.astype(np.float16) for n, x in tensors.items()})
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(load_bert(folder)[1]))


def test_weights_that_do_not_fit_are_named(folder):
    name = 'encoder.layer.1.output.dense.bias'
    rewrite(folder, lambda t: {**{n: x for n, x in t.items() if n != name}, 'extra.w': t[name]})
    with pytest.raises(UserError, match=rf'1 missing: {name}; 1 unknown: extra.w'):
        load_bert(folder)


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (lambda x: x[:-1], r'is \[31\] where config.json says \[32\]'),
        (lambda x: x * np.nan, 'is not finite'),
    ],
)
def test_bad_values_are_refused(folder, change, problem):
    name = 'embeddings.LayerNorm.bias'
    rewrite(folder, lambda tensors: {**tensors, name: change(tensors[name])})
    with pytest.raises(UserError, match=f'{name} {problem}'):
        load_bert(folder)


@pytest.mark.parametrize(
    ('fields', 'problem'),
    [
        ({'model_type': 'roberta'}, "type 'roberta'"),
        ({'position_embedding_type': 'relative_key'}, 'plain BERT'),
        ({'hidden_size': None}, "no 'hidden_size'"),
        ({'num_hidden_layers': -1}, "'num_hidden_layers' is -1"),
        ({'num_attention_heads': 5}, 'not a multiple'),
        ({'hidden_act': 'swish'}, "hidden_act 'swish'"),
    ],
)
def test_configs_that_are_not_berts_are_refused(folder, fields, problem):
    change_config(folder, **fields)
    with pytest.raises(UserError, match=problem):
        load_bert(folder)


def test_pickles_are_refused_with_the_way_out(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(UserError, match=r'pytorch_model.bin is a pickle.*save_pretrained'):
        load_bert(folder)
    (folder / 'pytorch_model.bin').unlink()
    with pytest.raises(UserError, match='model.safetensors does not exist'):
        load_bert(folder)
    (folder / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(UserError, match='several files'):
        load_bert(folder)
