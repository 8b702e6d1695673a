"""From folder and texts to embeddings, with the tiny BERT of tests/golden/make_bert.py."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.text import encoder, wordpiece
from maxquery_jax.text.embeddings import hash_file, hash_text, load_embeddings
from tests import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = ROOT / 'tests' / 'golden' / 'bert'


class Splitter:
    """Words of the golden vocabulary, split at spaces: no oracle, only something to encode."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def tokenize(self, texts):
        self.rows = [[self.vocabulary.index(word) for word in text.split()] for text in texts]
        return self

    def to_list(self):
        return self.rows


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(wordpiece, 'make_splitter', Splitter)
    monkeypatch.setattr(encoder.importlib.metadata, 'version', lambda name: '0')
    return encoder.load_encoder(GOLDEN)


def test_vectors_are_those_of_each_text_alone_in_order(tiny, monkeypatch):
    monkeypatch.setattr(encoder, '_BATCH', 2)
    texts = ['the right kidney tumor is of the liver', 'kidney', 'the liver']
    vectors, cut = encoder.encode(tiny, texts, 'mean')
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32 and cut == ()
    alone, _ = encoder.encode(tiny, texts[:1], 'mean')
    np.testing.assert_allclose(alone[0], vectors[0], atol=2e-6)
    turned, _ = encoder.encode(tiny, texts[::-1], 'mean')
    np.testing.assert_allclose(turned, vectors[::-1], atol=2e-6)
    with pytest.raises(UserError, match="pooling 'max' is unknown to bert; choose cls or mean"):
        encoder.encode(tiny, texts, 'max')
    with pytest.raises(UserError, match='max_length 41 is not between 3 and the 40'):
        encoder.encode(tiny, texts, 'cls', max_length=41)


def test_embeddings_record_their_origin(tiny):
    prompts = {'a': 'the liver', 'b': 'the right kidney'}
    result = encoder.embed(tiny, prompts, prompt='name', max_length=4)
    assert result.class_names == ('a', 'b') and result.cut == ('b',)
    assert result.text_hashes == {name: hash_text(text) for name, text in prompts.items()}
    assert (result.encoder, result.pooling, result.architecture) == ('bert', 'cls', 'bert')
    names = {'config.json', 'model.safetensors', 'vocab.txt', 'tokenizer_config.json'}
    assert result.encoder_files == {name: hash_file(GOLDEN / name) for name in names}
    expected, _ = encoder.encode(tiny, list(prompts.values()), 'cls', 4)
    np.testing.assert_array_equal(result.vectors, expected)


def test_folders_that_do_not_fit(tiny, tmp_path):
    with pytest.raises(UserError, match='none is no folder; name one with'):
        encoder.load_encoder(tmp_path / 'none')
    shutil.copytree(GOLDEN, tmp_path / 'x')
    with (tmp_path / 'x' / 'vocab.txt').open('a') as file:
        file.write('more\n')
    with pytest.raises(UserError, match='125 tokens, config.json says 124'):
        encoder.load_encoder(tmp_path / 'x')


@pytest.mark.parametrize('text', ['{}', '[]', '{"a": 3}', '{"a": " "}'])
def test_descriptions_of_the_user_are_checked(tmp_path, text):
    path = tmp_path / 'd.json'
    path.write_text('{"a": "b"}')
    assert encoder.read_descriptions(path) == {'a': 'b'}
    path.write_text(text)
    with pytest.raises(UserError, match='write {"class name": "description"'):
        encoder.read_descriptions(path)


def embed_text(python, *options):
    command = [python, '-m', 'launch.embed_text', *options]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    return processes.run(command, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        ([], '--encoder'),
        (['--encoder=none', '--out=x.safetensors'], 'none is no folder'),
        (['--encoder=none', '--out=x.npz'], 'must end in .safetensors'),
    ],
)
def test_the_verb_explains_what_is_wrong(python, options, problem):
    result = embed_text(python, *options)
    assert result.returncode == 2
    assert result.stderr.startswith('error: ') and problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_verb_writes_embeddings(python, tmp_path):
    pytest.importorskip('tensorflow_text', reason='the extra `text` is not installed')
    out, texts = tmp_path / 'e.safetensors', tmp_path / 'texts.json'
    texts.write_text(json.dumps({'liver': 'the liver ' * 20, 'mine': 'of the right kidney'}))
    options = (f'--encoder={GOLDEN}', f'--out={out}', '--pooling=mean', f'--texts={texts}')
    result = embed_text(python, *options)
    assert result.returncode == 0, result.stderr
    assert 'warning: too long, lost their ends: liver; shorten' in result.stderr
    loaded = load_embeddings(out)
    assert loaded.vectors.shape == (2, 32)
    assert loaded.class_names == ('liver', 'mine') and loaded.cut == ('liver',)
    assert (loaded.prompt, loaded.pooling) == ('description', 'mean')
    text = 'A computerized tomography of a mine. of the right kidney'
    assert loaded.text_hashes['mine'] == hash_text(text)
