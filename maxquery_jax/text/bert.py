"""BERT (Devlin et al. 2018) as a Flax encoder that loads a folder of published weights.

ZePT uses ClinicalBERT; any BERT of the same layout loads: config.json and model.safetensors, with
or without the `bert.` prefix, with `gamma` and `beta` for older norms. The pooler and the heads of
pre-training are left out.
"""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax import files
from maxquery_jax.errors import UserError
from maxquery_jax.text import weights
from maxquery_jax.text.layers import (
    Embedding,
    FeedForward,
    LayerNorm,
    SelfAttention,
    find_activation,
)
from maxquery_jax.typing import Array

POOLINGS = ('cls', 'mean')
_UNUSED = (r'pooler\.', r'cls\.', r'classifier\.', r'embeddings\.position_ids$')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT, under the names of its config.json.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads of each block.
        intermediate_size: width inside the feed-forward part.
        max_position_embeddings: longest sequence of tokens.
        type_vocab_size: rows of the segment table.
        layer_norm_eps: epsilon of every norm.
        hidden_act: key of `layers.ACTIVATIONS`.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = 'gelu'


class Bert(nn.Module, kw_only=True):
    """The encoder without pooler; norms follow the residual sums.

    Attributes:
        config: its sizes.
    """

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, segments: Array | None = None) -> Array:
        """Returns the last layer's vectors [B, T, C].

        Args:
            tokens: [B, T] int32 ids.
            mask: [B, T] bool, False for padding, which changes nothing for the other tokens.
            segments: [B, T] int32 token types; all 0 by default.
        """
        cfg = self.config
        length = tokens.shape[1]
        if segments is None:
            segments = jnp.zeros_like(tokens)
        positions = jnp.arange(length)[None]
        x = (
            Embedding(rows=cfg.vocab_size, features=cfg.hidden_size, name='word')(tokens)
            + Embedding(rows=cfg.type_vocab_size, features=cfg.hidden_size, name='segment')(
                segments
            )
            + Embedding(
                rows=cfg.max_position_embeddings, features=cfg.hidden_size, name='position'
            )(positions)
        )
        x = LayerNorm(epsilon=cfg.layer_norm_eps, name='norm')(x)
        visible = mask[:, None, None, :]
        for index in range(cfg.num_hidden_layers):
            x = BertLayer(config=cfg, name=f'layer{index}')(x, visible)
        return x


class BertLayer(nn.Module, kw_only=True):
    """Attention and feed-forward part, each with a residual sum and then a norm.

    Attributes:
        config: sizes of the encoder.
    """

    config: BertConfig

    @nn.compact
    def __call__(self, x: Array, visible: Array) -> Array:
        """Maps [B, T, C] to the same shape; `visible` as in `layers.SelfAttention`."""
        cfg = self.config
        attend = SelfAttention(num_heads=cfg.num_attention_heads, name='attention')
        x = LayerNorm(epsilon=cfg.layer_norm_eps, name='norm0')(x + attend(x, visible))
        feed = FeedForward(
            hidden=cfg.intermediate_size, activation=cfg.hidden_act, name='feed_forward'
        )
        return LayerNorm(epsilon=cfg.layer_norm_eps, name='norm1')(x + feed(x))


def pool(hidden: Array, mask: Array, pooling: str) -> Array:
    """One vector per text.

    Args:
        hidden: [B, T, C] vectors of the last layer.
        mask: [B, T] bool, False for padding.
        pooling: 'cls' the first token's vector, 'mean' the mean over all tokens that are no
            padding, [CLS] and [SEP] included.

    Returns:
        [B, C].

    Raises:
        UserError: an unknown pooling.
    """
    if pooling == 'cls':
        return hidden[:, 0]
    if pooling != 'mean':
        raise UserError(f'pooling {pooling!r} is unknown to BERT; choose {" or ".join(POOLINGS)}')
    kept = mask[..., None].astype(hidden.dtype)
    return jnp.sum(hidden * kept, axis=1) / jnp.sum(kept, axis=1)


def read_config(folder: pathlib.Path) -> BertConfig:
    """Reads the sizes of an encoder from its config.json.

    Raises:
        UserError: the file is missing, is not a BERT's, or is incomplete.
    """
    path = folder / 'config.json'
    data = files.read_json(path, fix='name a folder with config.json and model.safetensors')
    kind = data.get('model_type', 'bert')
    if kind != 'bert' or data.get('position_embedding_type', 'absolute') != 'absolute':
        raise UserError(f'{path} describes a model of type {kind!r} that is not a plain BERT')
    return parse_config(BertConfig, data, path)


def parse_config(kind: type[Any], data: dict[str, Any], path: pathlib.Path) -> Any:
    """An instance of the dataclass `kind` from the fields of a config.json that it knows.

    Raises:
        UserError: a field is missing or has another type, or the sizes contradict each other.
    """
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in data and field.default is dataclasses.MISSING:
            raise UserError(f'{path} has no {field.name!r}; is it the config of this encoder?')
        value = data.get(field.name, field.default)
        sound = {
            int: type(value) is int and value > 0,
            float: type(value) in (int, float) and value > 0,
            str: isinstance(value, str),
        }[field.type]  # pyright: ignore[reportArgumentType] - a type, not a string of it
        if not sound:
            raise UserError(f'{path}: {field.name!r} is {value!r}, which no encoder can have')
        values[field.name] = value
    config = kind(**values)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f'{path}: hidden_size is not a multiple of num_attention_heads')
    find_activation(config.hidden_act)
    return config


def load_bert(folder: pathlib.Path) -> tuple[Bert, dict[str, Any]]:
    """The encoder in `folder` and its parameters {'params': ...}.

    Raises:
        UserError: files that are missing, damaged or do not fit together.
    """
    config = read_config(folder)
    tensors = weights.normalise_names(weights.read_weights(folder), 'bert.', _UNUSED)
    return Bert(config=config), weights.place(tensors, _targets(config), folder)


def _targets(config: BertConfig) -> dict[str, weights.Target]:
    width, hidden = config.hidden_size, config.intermediate_size
    tables = {
        'word': config.vocab_size,
        'position': config.max_position_embeddings,
        'token_type': config.type_vocab_size,
    }
    targets = {
        f'embeddings.{name}_embeddings.weight': weights.Target(
            ('segment' if name == 'token_type' else name, 'table'), (rows, width)
        )
        for name, rows in tables.items()
    }
    targets |= weights.norm_targets('embeddings.LayerNorm', ('norm',), width)
    for index in range(config.num_hidden_layers):
        source, layer = f'encoder.layer.{index}', f'layer{index}'
        for name in ('query', 'key', 'value'):
            targets |= weights.dense_targets(
                f'{source}.attention.self.{name}', (layer, 'attention', name), (width, width)
            )
        targets |= weights.dense_targets(
            f'{source}.attention.output.dense', (layer, 'attention', 'out'), (width, width)
        )
        targets |= weights.norm_targets(
            f'{source}.attention.output.LayerNorm', (layer, 'norm0'), width
        )
        feed = (layer, 'feed_forward')
        targets |= weights.dense_targets(
            f'{source}.intermediate.dense', (*feed, 'expand'), (width, hidden)
        )
        targets |= weights.dense_targets(
            f'{source}.output.dense', (*feed, 'reduce'), (hidden, width)
        )
        targets |= weights.norm_targets(f'{source}.output.LayerNorm', (layer, 'norm1'), width)
    return targets
