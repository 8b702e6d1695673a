"""Files of knowledge embeddings: one vector per class, and all that says where they come from.

Training and prediction read such a file and need neither an encoder nor a tokenizer. Three files
ship with the package, made with the small sentence encoder all-MiniLM-L6-v2 (docs/knowledge.md).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maxquery_jax.errors import UserError
from maxquery_jax.files import PathLike
from maxquery_jax.text import tensorfile

FORMAT = 'maxquery_jax/knowledge'
VERSION = 1
SUFFIX = '.safetensors'
_FOLDER = pathlib.Path(__file__).parent / 'data'
_FIX = 'make it with `python -m launch.embed_text`'
_TEXT_FIELDS = ('encoder', 'architecture', 'pooling', 'prompt')
_JSON_FIELDS = ('class_names', 'text_hashes', 'encoder_files', 'cut', 'versions')


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowledgeEmbeddings:
    """Vectors of classes with their origin.

    Attributes:
        vectors: [K, D] float32, as the encoder gave them (not normalised).
        class_names: the K classes in the order of the rows.
        text_hashes: class name to the SHA-256 of the text that was encoded.
        prompt: kind of text, one of `knowledge.PROMPTS`.
        pooling: how token vectors became one.
        encoder: name of the encoder.
        architecture: 'bert' or 'clip'.
        encoder_files: name of each file of the encoder that was read to its SHA-256.
        cut: classes whose text was longer than the encoder was given.
        versions: name to version of the packages that made the vectors.
    """

    vectors: np.ndarray
    class_names: tuple[str, ...]
    text_hashes: Mapping[str, str]
    prompt: str
    pooling: str
    encoder: str
    architecture: str
    encoder_files: Mapping[str, str]
    cut: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of names and vectors, for the record of a run."""
        names = json.dumps(self.class_names).encode()
        return hashlib.sha256(names + self.vectors.astype('<f4').tobytes()).hexdigest()

    def select(self, names: Sequence[str]) -> np.ndarray:
        """The vectors [len(names), D] of some classes, in the order asked for.

        Raises:
            UserError: a class has no vector.
        """
        rows = {name: row for row, name in enumerate(self.class_names)}
        missing = [name for name in names if name not in rows]
        if missing:
            raise UserError(
                f'the knowledge embeddings of {self.encoder} have no vector for '
                f'{", ".join(missing)}; describe the class in a --texts file for '
                '`python -m launch.embed_text`'
            )
        return self.vectors[[rows[name] for name in names]]


def hash_text(text: str) -> str:
    """SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: PathLike) -> str:
    """SHA-256 of a file, in hex."""
    with pathlib.Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def shipped_names() -> list[str]:
    """Names of the files in the package, for `load_embeddings`."""
    return sorted(path.stem for path in _FOLDER.glob(f'*{SUFFIX}'))


def load_embeddings(name_or_path: PathLike) -> KnowledgeEmbeddings:
    """Reads and checks a file of embeddings.

    Args:
        name_or_path: one of `shipped_names`, or the path of a .safetensors file.

    Raises:
        UserError: there is no such file, or it is not sound.
    """
    text = str(name_or_path)
    if text in shipped_names():
        path = _FOLDER / f'{text}{SUFFIX}'
    elif text.endswith(SUFFIX) or pathlib.Path(text).exists():
        path = pathlib.Path(text)
    else:
        raise UserError(
            f'knowledge embeddings {text!r} are unknown; the package has '
            f'{", ".join(shipped_names())}, and a path ends in {SUFFIX}'
        )
    tensors, metadata = tensorfile.read_tensors(path, fix=_FIX)
    return _parse(path, tensors, metadata)


def check_suffix(path: PathLike) -> None:
    """Raises UserError unless a name is one that `save_embeddings` takes."""
    if not str(path).endswith(SUFFIX):
        raise UserError(f'{path}: the name of the embeddings must end in {SUFFIX}')


def save_embeddings(path: PathLike, embeddings: KnowledgeEmbeddings) -> None:
    """Writes a file that `load_embeddings` reads, whole or not at all.

    Raises:
        UserError: the name does not end in .safetensors, or the file cannot be written.
    """
    check_suffix(path)
    metadata = {'format': FORMAT, 'version': str(VERSION)}
    metadata |= {name: getattr(embeddings, name) for name in _TEXT_FIELDS}
    for name in _JSON_FIELDS:
        value = getattr(embeddings, name)
        metadata[name] = json.dumps(dict(value) if isinstance(value, Mapping) else list(value))
    vectors = np.ascontiguousarray(embeddings.vectors, np.float32)
    tensorfile.write_tensors(path, {'embeddings': vectors}, metadata)


def _parse(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> KnowledgeEmbeddings:
    if metadata.get('format') != FORMAT or set(tensors) != {'embeddings'}:
        raise UserError(f'{path} holds no knowledge embeddings; {_FIX}')
    if metadata.get('version') != str(VERSION):
        raise UserError(
            f'{path} has version {metadata.get("version")} of the format, this package reads '
            f'{VERSION}; {_FIX} again'
        )
    values: dict[str, Any] = {}
    try:
        values |= {name: metadata[name] for name in _TEXT_FIELDS}
        values |= {name: json.loads(metadata[name]) for name in _JSON_FIELDS}
    except (KeyError, ValueError) as error:
        raise UserError(f'{path}: its metadata are incomplete ({error}); {_FIX} again') from None
    kinds = {'class_names': list, 'cut': list}
    for name in _JSON_FIELDS:
        value = values[name]
        strings = [*value, *value.values()] if isinstance(value, dict) else value
        if type(value) is not kinds.get(name, dict) or not all(
            isinstance(string, str) for string in strings
        ):
            raise UserError(f'{path}: {name} of its metadata is not understood; {_FIX} again')
    values |= {'class_names': tuple(values['class_names']), 'cut': tuple(values['cut'])}
    embeddings = KnowledgeEmbeddings(vectors=tensors['embeddings'], **values)
    problem = _find_problem(embeddings)
    if problem:
        raise UserError(f'{path}: {problem}; {_FIX} again')
    return embeddings


def _find_problem(embeddings: KnowledgeEmbeddings) -> str | None:
    """What is wrong with the contents, if anything."""
    vectors, names = embeddings.vectors, embeddings.class_names
    if vectors.ndim != 2 or vectors.dtype != np.float32 or 0 in vectors.shape:
        return f'its vectors are {vectors.dtype} {list(vectors.shape)}, not float32 [K, D]'
    if len(names) != len(vectors) or len(set(names)) != len(names):
        return f'{len(vectors)} vectors do not fit {len(set(names))} different class names'
    if set(embeddings.text_hashes) != set(names) or not set(embeddings.cut) <= set(names):
        return 'its texts are not those of its classes'
    bad = ~np.isfinite(vectors).all(axis=1) | ~np.any(vectors, axis=1)
    if bad.any():
        which = ', '.join(name for name, wrong in zip(names, bad, strict=True) if wrong)
        return f'the vectors of {which} are zero or not finite'
    return None
