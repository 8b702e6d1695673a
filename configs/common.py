"""Parses the word list after the colon of `--config=FILE.py:word,word`."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

Config = Any  # an ml_collections.Config, whose fields a type checker cannot know
Variant = Callable[[Config], None]


def apply_variants(
    config: Config, arg: str | None, default: str, variants: Mapping[str, Variant]
) -> Config:
    """Applies comma-separated variants in order.

    Args:
        config: the base experiment, changed in place.
        arg: text after the colon of `--config`, or None.
        default: words used when there are none.
        variants: name to function that edits the config.

    Returns:
        The config, with `config.variant` set to the words applied.

    Raises:
        ValueError: a word is not a variant; the message lists those that are.
    """
    words = [word.strip() for word in (arg or default).split(',') if word.strip()]
    for word in words:
        if word not in variants:
            near = difflib.get_close_matches(word, variants, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(
                f'unknown variant {word!r} of {config.name}: choose from '
                f'{", ".join(sorted(variants))}{hint}'
            )
        variants[word](config)
    config.variant = ','.join(words)
    return config
