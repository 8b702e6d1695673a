"""CLIP's byte-pair encoding (Radford et al. 2021) from a folder's vocab.json and merges.txt.

No op of tensorflow-text has CLIP's merges; this is plain Python, fast enough for texts of classes.
"""

import functools
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from maxquery_jax import files
from maxquery_jax.errors import UserError
from maxquery_jax.text.wordpiece import MAX_LENGTH, TokenBatch, pad_tokens

START, END = '<|startoftext|>', '<|endoftext|>'
_WORD_END = '</w>'
_CONTRACTIONS = re.compile(r"'(s|t|re|ve|m|ll|d)")
_FIX = 'name a folder with vocab.json and merges.txt of a CLIP'


class BytePairs:
    """The tokenizer of a CLIP folder; texts are lower-cased and white space is folded.

    Attributes:
        vocabulary: token to id.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the folder's files; raises UserError if they are missing or not understood."""
        path = folder / 'vocab.json'
        self.vocabulary: dict[str, int] = files.read_json(path, fix=_FIX)
        ids = [index for index in self.vocabulary.values() if type(index) is int]
        needed = {START, END, *_byte_characters().values()}
        if sorted(ids) != list(range(len(self.vocabulary))) or not needed <= set(self.vocabulary):
            raise UserError(f"{path} is not CLIP's vocabulary; {_FIX}")
        self._ranks = {pair: rank for rank, pair in enumerate(_read_merges(folder))}

    def __call__(self, texts: Sequence[str], max_length: int = MAX_LENGTH) -> TokenBatch:
        """Ids of the start, the text's pieces and the end, padded with ends; see `pad_tokens`."""
        start, end = self.vocabulary[START], self.vocabulary[END]
        return pad_tokens([self._ids(text) for text in texts], start, end, end, max_length)

    def _ids(self, text: str) -> list[int]:
        text = ' '.join(unicodedata.normalize('NFC', text).split()).lower()
        symbols = _byte_characters()
        ids = []
        for word in split_words(text):
            characters = [symbols[byte] for byte in word.encode()]
            pieces = self._merge([*characters[:-1], characters[-1] + _WORD_END])
            ids += [self.vocabulary.get(piece, self.vocabulary[END]) for piece in pieces]
        return ids

    def _merge(self, pieces: list[str]) -> list[str]:
        """Joins the pair of lowest rank, wherever it occurs, until no pair has a rank."""
        while len(pieces) > 1:
            pairs = set(zip(pieces, pieces[1:], strict=False))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged, index = [], 0
            while index < len(pieces):
                if tuple(pieces[index : index + 2]) == best:
                    merged.append(''.join(best))
                    index += 2
                else:
                    merged.append(pieces[index])
                    index += 1
            pieces = merged
        return pieces


def split_words(text: str) -> list[str]:
    """Contractions, runs of letters, single digits and runs of anything but spaces, in order."""
    words, index = [], 0
    while index < len(text):
        contraction = _CONTRACTIONS.match(text, index)
        kind = _kind(text[index])
        end = contraction.end() if contraction else index + 1
        if not contraction and kind != 'N':
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != ' ':
            words.append(text[index:end])
        index = end
    return words


def _kind(character: str) -> str:
    """'L' for a letter, 'N' for a number, ' ' for space, 'O' for anything else."""
    if character.isspace():
        return ' '
    major = unicodedata.category(character)[0]
    return major if major in 'LN' else 'O'


@functools.cache
def _byte_characters() -> dict[int, str]:
    """Byte to the printable character that stands for it in the vocabulary (GPT-2's table)."""
    printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _read_merges(folder: pathlib.Path) -> list[tuple[str, str]]:
    path = folder / 'merges.txt'
    try:
        lines = path.read_text('utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read ({error}); {_FIX}') from error
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith('#version')]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) < len(pairs):
        raise UserError(f'{path} has a line that is no pair; {_FIX}')
    return merges
