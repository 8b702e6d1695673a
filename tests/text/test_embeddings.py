import dataclasses

import numpy as np
import pytest

from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.errors import UserError
from maxquery_jax.text import tensorfile
from maxquery_jax.text.embeddings import (
    KnowledgeEmbeddings,
    hash_text,
    load_embeddings,
    save_embeddings,
    shipped_names,
)
from maxquery_jax.text.knowledge import build_prompts

SHIPPED = {
    'minilm_descriptions': 'description',
    'minilm_names': 'name',
    'minilm_plain': 'plain',
}


def embeddings(**changes) -> KnowledgeEmbeddings:
    names = ('liver', 'liver_tumour', 'colon')
    fields = {
        'vectors': np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32),
        'class_names': names,
        'text_hashes': {name: hash_text(name) for name in names},
        'prompt': 'name',
        'pooling': 'cls',
        'encoder': 'tiny',
        'architecture': 'bert',
        'encoder_files': {'config.json': '0' * 64},
        'cut': ('colon',),
        'versions': {'jax': '1'},
    }
    return KnowledgeEmbeddings(**{**fields, **changes})


def test_round_trip(tmp_path):
    path = tmp_path / 'folder' / 'e.safetensors'
    saved = embeddings()
    save_embeddings(path, saved)
    loaded = load_embeddings(path)
    for field in dataclasses.fields(saved):
        np.testing.assert_equal(getattr(loaded, field.name), getattr(saved, field.name))
    assert loaded.digest == saved.digest
    assert loaded.digest != embeddings(vectors=saved.vectors + 1).digest
    assert [p.name for p in path.parent.iterdir()] == ['e.safetensors']


def test_rows_are_selected_by_name():
    knowledge = embeddings()
    rows = knowledge.select(['colon', 'liver'])
    np.testing.assert_array_equal(rows, knowledge.vectors[[2, 0]])
    with pytest.raises(UserError, match='no vector for spleen, x; describe'):
        knowledge.select(['spleen', 'liver', 'x'])


def spoil(path, vectors=None, **metadata):
    tensors, old = tensorfile.read_tensors(path, fix='')
    tensors = tensors if vectors is None else {'embeddings': vectors}
    new = {name: value for name, value in {**old, **metadata}.items() if value is not None}
    tensorfile.write_tensors(path, tensors, new)


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        ({'format': None}, 'holds no knowledge embeddings'),
        ({'version': '2'}, 'version 2 of the format, this package reads 1'),
        ({'encoder': None}, "incomplete .*'encoder'"),
        ({'class_names': '['}, 'incomplete'),
        ({'class_names': '{}'}, 'class_names of its metadata'),
        ({'cut': '[1]'}, 'cut of its metadata'),
        ({'text_hashes': '{"liver": 3}'}, 'text_hashes of its metadata'),
        ({'text_hashes': '{"liver": "3"}'}, 'not those of its classes'),
        ({'class_names': '["liver", "liver", "colon"]'}, '3 vectors do not fit 2 different'),
        ({'vectors': np.ones(3, np.float32)}, r'float32 \[3\], not float32 \[K, D\]'),
        ({'vectors': np.ones((3, 4), np.float16)}, 'float16'),
        ({'vectors': np.eye(3, 4, dtype=np.float32) * [[1], [np.nan], [1]]}, 'float64'),
        ({'vectors': np.diag(np.float32([1, np.nan, 0]))}, 'of liver_tumour, colon are zero'),
        ({'vectors': np.diag(np.float32([1, 0, 2]))}, 'of liver_tumour are zero'),
    ],
)
def test_unsound_files_are_refused(tmp_path, changes, problem):
    path = tmp_path / 'e.safetensors'
    save_embeddings(path, embeddings())
    spoil(path, **changes)
    with pytest.raises(UserError, match=f'e.safetensors.*{problem}.*launch.embed_text'):
        load_embeddings(path)


def test_names_and_paths_that_are_nothing(tmp_path):
    with pytest.raises(UserError, match='unknown; the package has minilm_descriptions, '):
        load_embeddings('clinicalbert')
    with pytest.raises(UserError, match='x.safetensors does not exist'):
        load_embeddings(tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match='must end in .safetensors'):
        save_embeddings(tmp_path / 'x.npz', embeddings())


def test_the_shipped_files_are_these():
    assert shipped_names() == sorted(SHIPPED)


@pytest.mark.parametrize('name', SHIPPED)
def test_a_shipped_file_is_of_the_present_texts(name):
    knowledge = load_embeddings(name)
    assert knowledge.vectors.shape == (45, 384)
    assert knowledge.prompt == SHIPPED[name]
    assert (knowledge.encoder, knowledge.pooling) == ('all-MiniLM-L6-v2', 'mean')
    assert knowledge.class_names == tuple(concept.name for concept in TAXONOMY)
    texts = build_prompts(knowledge.prompt)
    stale = [n for n, text in texts.items() if knowledge.text_hashes[n] != hash_text(text)]
    assert not stale, f'texts were edited; embed them again (docs/knowledge.md): {stale}'
    assert knowledge.cut == ()
    assert {'config.json', 'model.safetensors', 'vocab.txt'} <= set(knowledge.encoder_files)
    assert 'tensorflow-text' in knowledge.versions


def test_meanings_lie_where_they_should():
    knowledge = load_embeddings('minilm_descriptions')
    unit = knowledge.vectors / np.linalg.norm(knowledge.vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[~np.eye(45, dtype=bool)].max() < 0.995, 'two classes are the same to the encoder'
    np.fill_diagonal(cosine, -1)
    names = knowledge.class_names
    nearest = {name: names[row.argmax()] for name, row in zip(names, cosine, strict=True)}
    pairs = ('kidney', 'lung', 'adrenal_gland', 'head_of_femur')
    for pair in pairs:
        assert nearest[f'left_{pair}'] == f'right_{pair}'
        assert nearest[f'right_{pair}'] == f'left_{pair}'
    for name in ('pancreas', 'stomach', 'rectum', 'spleen', 'esophagus'):
        tumour = 'rectal_tumour' if name == 'rectum' else f'{name}_tumour'
        assert nearest[tumour] == name
    assert nearest['liver_tumour'] == 'hepatic_vessel_tumour'
