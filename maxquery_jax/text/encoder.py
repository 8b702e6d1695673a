"""Encodes texts with a published encoder: folder in, vectors and their origin out."""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np

import maxquery_jax
from maxquery_jax import files
from maxquery_jax.errors import UserError
from maxquery_jax.files import PathLike
from maxquery_jax.text import bert, clip, weights
from maxquery_jax.text.bpe import BytePairs
from maxquery_jax.text.embeddings import KnowledgeEmbeddings, hash_file, hash_text
from maxquery_jax.text.wordpiece import MAX_LENGTH, TokenBatch, WordPiece

_BATCH = 16
_FILES = (
    'config.json',
    weights.WEIGHTS_FILE,
    'vocab.txt',
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
    'merges.txt',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A loaded encoder.

    Attributes:
        name: of its folder.
        architecture: 'bert' or 'clip'.
        poolings: ways to make one vector of a text; the first is the default.
        max_length: tokens that it can read.
        tokenise: (texts, max_length) to `TokenBatch`.
        apply: (params, ids [B, T], mask [B, T], pooling) to [B, D].
        params: its weights.
        files: name of each file that counts to its SHA-256.
    """

    name: str
    architecture: str
    poolings: tuple[str, ...]
    max_length: int
    tokenise: Callable[[list[str], int], TokenBatch]
    apply: Callable[..., jax.Array]
    params: Any
    files: Mapping[str, str]


def load_encoder(folder: PathLike) -> TextEncoder:
    """Reads an encoder in the layout of Hugging Face: config.json and model.safetensors.

    A BERT comes with vocab.txt and needs tensorflow-text; a CLIP with vocab.json and merges.txt.

    Raises:
        UserError: the folder holds no encoder that is understood, or tensorflow-text is missing.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(
            f'{folder} is no folder; name one with config.json, model.safetensors and vocab.txt'
        )
    kind = files.read_json(folder / 'config.json', fix='name another folder').get('model_type')
    architecture = 'clip' if kind in clip.MODEL_TYPES else 'bert'
    model, params = clip.load_clip(folder) if architecture == 'clip' else bert.load_bert(folder)
    tokenise = BytePairs(folder) if architecture == 'clip' else WordPiece(folder)
    if len(tokenise.vocabulary) > model.config.vocab_size:
        raise UserError(
            f'{folder}: the vocabulary has {len(tokenise.vocabulary)} tokens, config.json says '
            f'{model.config.vocab_size}; the files belong to different models'
        )

    def apply(params: Any, ids: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
        outputs: Any = model.apply(params, ids, mask)
        return outputs if architecture == 'clip' else bert.pool(outputs, mask, pooling)

    return TextEncoder(
        name=folder.resolve().name,
        architecture=architecture,
        poolings=clip.POOLINGS if architecture == 'clip' else bert.POOLINGS,
        max_length=model.config.max_position_embeddings,
        tokenise=tokenise,
        apply=apply,
        params=params,
        files={name: hash_file(folder / name) for name in _FILES if (folder / name).exists()},
    )


def encode(
    encoder: TextEncoder, texts: list[str], pooling: str, max_length: int | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Vectors of texts.

    Args:
        encoder: from `load_encoder`.
        texts: B texts.
        pooling: one of `encoder.poolings`.
        max_length: tokens of a text at most, what follows is cut; None for 150 or as many as the
            encoder reads.

    Returns:
        [B, D] float32, and the places of the texts that were cut.

    Raises:
        UserError: the encoder cannot read so many tokens, or has no such pooling.
    """
    max_length = max_length or min(MAX_LENGTH, encoder.max_length)
    if not 3 <= max_length <= encoder.max_length:
        raise UserError(
            f'max_length {max_length} is not between 3 and the {encoder.max_length} tokens that '
            f'{encoder.name} reads; choose another'
        )
    if pooling not in encoder.poolings:
        raise UserError(
            f'pooling {pooling!r} is unknown to {encoder.name}; choose '
            f'{" or ".join(encoder.poolings)}'
        )
    tokens = encoder.tokenise(texts, max_length)
    apply = jax.jit(encoder.apply, static_argnums=3)
    rows = []
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        rows.append(np.asarray(apply(encoder.params, tokens.ids[part], tokens.mask[part], pooling)))
    return np.concatenate(rows), tokens.cut


def embed(
    encoder: TextEncoder,
    prompts: Mapping[str, str],
    *,
    prompt: str,
    pooling: str | None = None,
    max_length: int | None = None,
) -> KnowledgeEmbeddings:
    """Embeddings of classes with their origin.

    Args:
        encoder: from `load_encoder`.
        prompts: class name to the text that stands for it, at least one.
        prompt: kind of the texts, for the record.
        pooling: see `encode`; None for the encoder's first.
        max_length: see `encode`.

    Raises:
        UserError: see `encode`.
    """
    pooling = pooling or encoder.poolings[0]
    names = tuple(prompts)
    vectors, cut = encode(encoder, list(prompts.values()), pooling, max_length)
    return KnowledgeEmbeddings(
        vectors=vectors,
        class_names=names,
        text_hashes={name: hash_text(text) for name, text in prompts.items()},
        prompt=prompt,
        pooling=pooling,
        encoder=encoder.name,
        architecture=encoder.architecture,
        encoder_files=encoder.files,
        cut=tuple(names[index] for index in cut),
        versions=_versions(encoder.architecture),
    )


def _versions(architecture: str) -> dict[str, str]:
    versions = {
        'maxquery_jax': maxquery_jax.__version__,
        'jax': jax.__version__,
        'flax': flax.__version__,
    }
    if architecture == 'bert':
        versions['tensorflow-text'] = importlib.metadata.version('tensorflow-text')
    return versions


def read_descriptions(path: PathLike) -> dict[str, str]:
    """A user's descriptions, a JSON object from class name to text.

    Raises:
        UserError: the file is missing or something else.
    """
    fix = 'write {"class name": "description", ...}'
    descriptions = files.read_json(path, fix=fix)
    wrong = [n for n, text in descriptions.items() if not isinstance(text, str) or not text.strip()]
    if wrong or not descriptions:
        raise UserError(f'{path} has no text for {", ".join(wrong) or "any class"}; {fix}')
    return descriptions
