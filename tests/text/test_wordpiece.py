"""Oracle: ids by transformers' tokenizer in plain Python (tests/golden/make_bert.py)."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from maxquery_jax.errors import UserError
from maxquery_jax.text import wordpiece
from maxquery_jax.text.wordpiece import WordPiece, pad_tokens, read_vocabulary

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'bert'


@pytest.fixture
def folder(tmp_path):
    for name in ('vocab.txt', 'tokenizer_config.json'):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def needs_tensorflow_text():
    pytest.importorskip('tensorflow_text', reason='the extra `text` is not installed')


@pytest.fixture
def no_splitter(monkeypatch):
    """Everything but the splitting itself, for environments without the extra."""
    monkeypatch.setattr(wordpiece, 'make_splitter', lambda vocabulary: None)


@pytest.mark.usefixtures('needs_tensorflow_text')
@pytest.mark.parametrize('kind', ['lower', 'cased'])
def test_ids_match_the_peer(folder, kind):
    config = json.dumps({'do_lower_case': kind == 'lower'})
    (folder / 'tokenizer_config.json').write_text(config)
    expected = json.loads((GOLDEN / 'expected.json').read_text())
    batch = WordPiece(folder)(expected['sentences'], max_length=1000)
    assert batch.cut == ()
    for text, ids, mask, wanted in zip(
        expected['sentences'], batch.ids, batch.mask, expected[kind], strict=True
    ):
        assert ids[mask].tolist() == wanted, text


@pytest.mark.usefixtures('needs_tensorflow_text')
def test_long_texts_are_cut_before_the_separator(folder):
    batch = WordPiece(folder)(['liver liver liver', 'liver'], max_length=4)
    vocabulary = read_vocabulary(folder)
    words = [[vocabulary[i] for i in row] for row in batch.ids]
    assert words == [['[CLS]', 'liver', 'liver', '[SEP]'], ['[CLS]', 'liver', '[SEP]', '[PAD]']]
    assert batch.cut == (0,)


def test_padding():
    batch = pad_tokens([[5], [], [5, 6, 7, 8]], first=1, last=2, pad=0, max_length=5)
    np.testing.assert_array_equal(batch.ids, [[1, 5, 2, 0, 0], [1, 2, 0, 0, 0], [1, 5, 6, 7, 2]])
    np.testing.assert_array_equal(batch.mask, batch.ids > 0)
    assert batch.cut == (2,)


@pytest.mark.usefixtures('no_splitter')
def test_case_is_that_of_the_config(folder):
    assert WordPiece(folder).lower_case
    (folder / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert not WordPiece(folder).lower_case
    (folder / 'tokenizer_config.json').unlink()
    assert WordPiece(folder).lower_case  # as in transformers


def test_normalisation():
    assert wordpiece.normalise('CafÉ\u200b\tß µ…', True) == 'cafe ß µ…'
    assert wordpiece.normalise('Cafe\u0301\u00a0X\ufffd', False) == 'Café X'


@pytest.mark.usefixtures('no_splitter')
def test_vocabulary_of_newer_folders(folder):
    vocabulary = read_vocabulary(folder)
    ids = {token: index for index, token in enumerate(vocabulary)}
    model = {'type': 'WordPiece', 'vocab': dict(sorted(ids.items()))}
    (folder / 'vocab.txt').unlink()
    (folder / 'tokenizer.json').write_text(json.dumps({'model': model}))
    assert WordPiece(folder).vocabulary == vocabulary
    (folder / 'tokenizer.json').write_text(json.dumps({'model': {**model, 'type': 'BPE'}}))
    with pytest.raises(UserError, match='no WordPiece vocabulary'):
        WordPiece(folder)
    (folder / 'tokenizer.json').unlink()
    with pytest.raises(UserError, match=r'has no vocab.txt; name a folder'):
        WordPiece(folder)


@pytest.mark.usefixtures('no_splitter')
@pytest.mark.parametrize(
    ('vocabulary', 'config', 'problem'),
    [
        ('[PAD]\n[UNK]\n[CLS]\nx', '{}', r'no \[SEP\]'),
        ('[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\nx', '{}', 'twice'),
        ('[PAD]\n[UNK]\n[CLS]\n[SEP]', '{"strip_accents": false}', 'strip_accents'),
        ('[PAD]\n[UNK]\n[CLS]\n[SEP]', '{"tokenize_chinese_chars": false}', 'chinese'),
        ('[PAD]\n[UNK]\n[CLS]\n[SEP]', '[', 'not JSON'),
    ],
)
def test_folders_that_are_not_understood(folder, vocabulary, config, problem):
    (folder / 'vocab.txt').write_text(vocabulary)
    (folder / 'tokenizer_config.json').write_text(config)
    with pytest.raises(UserError, match=problem):
        WordPiece(folder)


def test_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'tensorflow_text', None)
    with pytest.raises(UserError, match=r"pip install 'maxquery_jax\[text\]'"):
        WordPiece(folder)
