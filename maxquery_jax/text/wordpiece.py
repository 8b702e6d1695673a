"""WordPiece tokenisation of a BERT folder by tensorflow-text (the extra `text`).

BERT's own normalisation comes first: that of tensorflow-text folds cases and compatible characters,
so that a sharp s, a micro sign or an ellipsis would give other ids than the encoder was trained on.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from maxquery_jax import files
from maxquery_jax.errors import UserError

CLASSIFY, SEPARATE, UNKNOWN, PAD = '[CLS]', '[SEP]', '[UNK]', '[PAD]'
MAX_LENGTH = 150  # tokens; the authors' later code
_FIX = 'name a folder with vocab.txt (or tokenizer.json) of a BERT'


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Tokens of texts, padded to the longest.

    Attributes:
        ids: [B, T] int32.
        mask: [B, T] bool, False for padding.
        cut: places of the texts that were longer than allowed and lost their ends.
    """

    ids: np.ndarray
    mask: np.ndarray
    cut: tuple[int, ...] = ()


def pad_tokens(
    sequences: Sequence[Sequence[int]], first: int, last: int, pad: int, max_length: int
) -> TokenBatch:
    """Puts special tokens around sequences, cuts them to `max_length` in all, and pads them.

    Args:
        sequences: ids of each text.
        first: id put before each.
        last: id put after each, also after one that is cut.
        pad: id of the padding.
        max_length: tokens of a text at most, special ones included.
    """
    rows = [[first, *sequence[: max_length - 2], last] for sequence in sequences]
    ids = np.full((len(rows), max(map(len, rows), default=0)), pad, np.int32)
    mask = np.zeros(ids.shape, bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = True
    cut = tuple(i for i, sequence in enumerate(sequences) if len(sequence) > max_length - 2)
    return TokenBatch(ids, mask, cut)


class WordPiece:
    """The tokenizer of a BERT folder.

    Letters are lower-cased and lose their accents if tokenizer_config.json says `do_lower_case`
    (true where nothing is said, as in transformers; see `lower_case` for what was decided).

    Attributes:
        vocabulary: tokens in the order of their ids.
        lower_case: whether texts are lower-cased.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the folder's files; raises UserError if they are missing or not understood."""
        self.vocabulary = read_vocabulary(folder)
        self.lower_case = _reads_lower_case(folder)
        self._ids = {token: index for index, token in enumerate(self.vocabulary)}
        if len(self._ids) < len(self.vocabulary):
            raise UserError(f'{folder}: a token is twice in the vocabulary; {_FIX}')
        for token in (CLASSIFY, SEPARATE, UNKNOWN, PAD):
            if token not in self._ids:
                raise UserError(f'{folder}: the vocabulary has no {token}; {_FIX}')
        self._splitter = make_splitter(self.vocabulary)

    def __call__(self, texts: Sequence[str], max_length: int = MAX_LENGTH) -> TokenBatch:
        """Ids of [CLS], the text's pieces and [SEP], padded; see `pad_tokens`."""
        clean = [normalise(text, self.lower_case) for text in texts]
        pieces = self._splitter.tokenize(clean).to_list() if clean else []
        special = (self._ids[token] for token in (CLASSIFY, SEPARATE, PAD))
        return pad_tokens(pieces, *special, max_length=max_length)


def normalise(text: str, lower_case: bool) -> str:
    """A text as BERT reads it: no control characters, plain spaces, NFC or bare lower case."""
    kept = []
    for character in text:
        if character in '\t\n\r' or unicodedata.category(character) == 'Zs':
            kept.append(' ')
        elif character != '\ufffd' and not unicodedata.category(character).startswith('C'):
            kept.append(character)
    text = unicodedata.normalize('NFC', ''.join(kept))
    if not lower_case:
        return text
    decomposed = unicodedata.normalize('NFD', text.lower())
    return ''.join(c for c in decomposed if unicodedata.category(c) != 'Mn')


def make_splitter(vocabulary: Sequence[str]) -> Any:
    """The tensorflow-text op that splits normalised texts into ids.

    Raises:
        UserError: tensorflow-text is not installed.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # pages about devices that are not used
    try:
        module = importlib.import_module('tensorflow_text')
        config = importlib.import_module('tensorflow').config
    except ImportError as error:
        raise UserError(
            f'tensorflow-text, which splits texts into tokens, cannot be imported ({error}); '
            "install the extra: pip install 'maxquery_jax[text]'"
        ) from error
    with contextlib.suppress(RuntimeError):  # its devices are in use already
        config.set_visible_devices([], 'GPU')  # or TensorFlow takes all the memory from JAX
    return module.FastBertTokenizer(
        vocab=list(vocabulary), unknown_token=UNKNOWN, lower_case_nfd_strip_accents=False
    )


def read_vocabulary(folder: pathlib.Path) -> list[str]:
    """The tokens in vocab.txt, one a line, or else in tokenizer.json, in the order of their ids.

    Raises:
        UserError: neither file is there, or it is not understood.
    """
    path = folder / 'vocab.txt'
    if path.exists():
        try:
            return path.read_text('utf-8').rstrip('\n').split('\n')
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'{path} cannot be read ({error}); {_FIX}') from error
    path = folder / 'tokenizer.json'
    if not path.exists():
        raise UserError(f'{folder} has no vocab.txt; {_FIX}')
    model: Any = files.read_json(path, fix=_FIX).get('model')
    with contextlib.suppress(TypeError, KeyError, AttributeError):
        if model['type'] == 'WordPiece':
            tokens = sorted(model['vocab'], key=model['vocab'].get)
            if [model['vocab'][token] for token in tokens] == list(range(len(tokens))):
                return tokens
    raise UserError(f'{path} holds no WordPiece vocabulary; {_FIX}')


def _reads_lower_case(folder: pathlib.Path) -> bool:
    """`do_lower_case` of tokenizer_config.json, true where it is not said.

    Raises:
        UserError: the file asks for something that this tokenizer cannot do.
    """
    path = folder / 'tokenizer_config.json'
    if not path.exists():
        return True
    config = files.read_json(path, fix='mend it, or remove it for a lower-casing tokenizer')
    lower_case = config.get('do_lower_case', True)
    if config.get('strip_accents') not in (None, lower_case):
        raise UserError(f'{path}: strip_accents other than do_lower_case is not supported')
    if config.get('tokenize_chinese_chars', True) is not True:
        raise UserError(f'{path}: tokenize_chinese_chars=false is not supported')
    return bool(lower_case)
