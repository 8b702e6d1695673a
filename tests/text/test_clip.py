"""Oracle: what transformers' CLIP made of a tiny text encoder (tests/golden/make_clip.py)."""

import json
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.text import encoder, tensorfile
from maxquery_jax.text.bpe import BytePairs
from maxquery_jax.text.clip import Clip, load_clip

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'clip'
EXPECTED = json.loads((GOLDEN / 'expected.json').read_text())


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / 'clip')
    return tmp_path / 'clip'


@pytest.fixture(scope='module')
def vectors():
    with np.load(GOLDEN / 'expected.npz') as data:
        return data['vectors']


@pytest.mark.parametrize(
    ('text', 'wanted'), list(zip(EXPECTED['sentences'], EXPECTED['ids'], strict=True))
)
def test_ids_match_the_peer(text, wanted):
    batch = BytePairs(GOLDEN)([text])
    assert batch.ids[0].tolist() == wanted


def test_vectors_match_the_peer_whatever_the_padding(vectors):
    clip = encoder.load_encoder(GOLDEN)
    result = encoder.embed(
        clip, {text: text for text in EXPECTED['sentences'][: len(vectors)]}, prompt='name'
    )
    np.testing.assert_allclose(result.vectors, vectors, atol=1e-5)
    assert (result.architecture, result.pooling) == ('clip', 'end')
    assert {'vocab.json', 'merges.txt'} <= set(result.encoder_files)
    with pytest.raises(UserError, match="pooling 'cls' is unknown to clip; choose end"):
        encoder.encode(clip, ['a'], 'cls')


def test_parameters_have_logical_axes_and_the_loaded_names():
    model, params = load_clip(GOLDEN)
    tokens = np.zeros((1, 4), np.int32)
    init = Clip(config=model.config).init
    boxed = jax.eval_shape(lambda: init(jax.random.key(0), tokens, tokens > -1))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
    shapes = jax.tree.map(lambda x: x.shape, nn.meta.unbox(boxed))
    assert jax.tree.map(lambda x: x.shape, params) == shapes


def test_text_half_of_a_whole_clip_loads(folder):
    config = json.loads((folder / 'config.json').read_text())
    whole = {'model_type': 'clip', 'projection_dim': config.pop('projection_dim')}
    whole |= {'text_config': config, 'vision_config': {}}
    (folder / 'config.json').write_text(json.dumps(whole))
    tensors, _ = tensorfile.read_tensors(folder / 'model.safetensors', fix='')
    image = {name: np.zeros(2) for name in ('vision_model.x', 'visual_projection.w')}
    tensors |= image | {'logit_scale': np.array(1.0)}
    tensorfile.write_tensors(folder / 'model.safetensors', tensors, {})
    jax.tree.map(np.testing.assert_array_equal, load_clip(folder)[1], load_clip(GOLDEN)[1])


@pytest.mark.parametrize(
    ('name', 'text', 'problem'),
    [
        ('vocab.json', '{"a": 0}', 'vocabulary'),
        ('vocab.json', '{"a": "x"}', 'vocabulary'),
        ('merges.txt', 'a b\nc', 'a line that is no pair'),
        ('merges.txt', None, 'cannot be read'),
        ('config.json', '{"model_type": "clip", "text_config": 3}', 'describes no CLIP'),
        ('config.json', '{"model_type": "clip"}', "no 'vocab_size'"),
    ],
)
def test_folders_that_are_not_understood(folder, name, text, problem):
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=f'{name}.*{problem}'):
        encoder.load_encoder(folder)
