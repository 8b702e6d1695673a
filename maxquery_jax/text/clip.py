"""CLIP's text encoder (Radford et al. 2021) in Flax, for ZePT Table 10 and the universal model.

Loads config.json and model.safetensors of a text model with projection or of a whole CLIP, whose
image half is left out.
"""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax import files
from maxquery_jax.errors import UserError
from maxquery_jax.text import weights
from maxquery_jax.text.bert import parse_config
from maxquery_jax.text.layers import Dense, Embedding, FeedForward, LayerNorm, SelfAttention
from maxquery_jax.typing import Array

POOLINGS = ('end',)
MODEL_TYPES = ('clip', 'clip_text_model')
_UNUSED = (
    r'vision_model\.',
    r'visual_projection\.',
    r'logit_scale$',
    r'text_model\.embeddings\.position_ids$',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of a CLIP text encoder, under the names of its config.json.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads of each block.
        intermediate_size: width inside the feed-forward part.
        projection_dim: size of the text's vector.
        max_position_embeddings: longest sequence of tokens.
        layer_norm_eps: epsilon of every norm.
        hidden_act: key of `layers.ACTIVATIONS`.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    projection_dim: int
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = 'quick_gelu'


class Clip(nn.Module, kw_only=True):
    """The text encoder with its projection; norms come before the parts of a block.

    Attributes:
        config: its sizes.
    """

    config: ClipConfig

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        """Returns the projected vector [B, P] of each text's end token.

        Args:
            tokens: [B, T] int32 ids, padded behind the end token.
            mask: [B, T] bool, False for padding.
        """
        cfg = self.config
        length = tokens.shape[1]
        table = Embedding(rows=cfg.vocab_size, features=cfg.hidden_size, name='word')
        places = Embedding(
            rows=cfg.max_position_embeddings, features=cfg.hidden_size, name='position'
        )
        x = table(tokens) + places(jnp.arange(length)[None])
        # Tokens see only what precedes them, so padding at the end changes nothing.
        visible = jnp.tril(jnp.ones((length, length), bool))[None, None]
        for index in range(cfg.num_hidden_layers):
            x = ClipLayer(config=cfg, name=f'layer{index}')(x, visible)
        x = LayerNorm(epsilon=cfg.layer_norm_eps, name='norm')(x)
        end = jnp.sum(mask, axis=1) - 1
        last = jnp.take_along_axis(x, end[:, None, None], axis=1)  # [B, 1, C]
        return Dense(features=cfg.projection_dim, use_bias=False, name='projection')(last)[:, 0]


class ClipLayer(nn.Module, kw_only=True):
    """Attention and feed-forward part on normalised inputs, each added to its input.

    Attributes:
        config: sizes of the encoder.
    """

    config: ClipConfig

    @nn.compact
    def __call__(self, x: Array, visible: Array) -> Array:
        """Maps [B, T, C] to the same shape; `visible` as in `layers.SelfAttention`."""
        cfg = self.config
        attend = SelfAttention(num_heads=cfg.num_attention_heads, name='attention')
        x = x + attend(LayerNorm(epsilon=cfg.layer_norm_eps, name='norm0')(x), visible)
        feed = FeedForward(
            hidden=cfg.intermediate_size, activation=cfg.hidden_act, name='feed_forward'
        )
        return x + feed(LayerNorm(epsilon=cfg.layer_norm_eps, name='norm1')(x))


def load_clip(folder: pathlib.Path) -> tuple[Clip, dict[str, Any]]:
    """The text encoder in `folder` and its parameters {'params': ...}.

    Raises:
        UserError: files that are missing, damaged or do not fit together.
    """
    path = folder / 'config.json'
    data = files.read_json(path, fix='name a folder with config.json and model.safetensors')
    text = data.get('text_config', {})
    if data.get('model_type') not in MODEL_TYPES or not isinstance(text, dict):
        raise UserError(f'{path} describes no CLIP')
    config = parse_config(ClipConfig, {**text, **data}, path)
    tensors = weights.normalise_names(weights.read_weights(folder), '', _UNUSED)
    return Clip(config=config), weights.place(tensors, _targets(config), folder)


def _targets(config: ClipConfig) -> dict[str, weights.Target]:
    width, hidden = config.hidden_size, config.intermediate_size
    embeddings = 'text_model.embeddings'
    targets = {
        f'{embeddings}.token_embedding.weight': weights.Target(
            ('word', 'table'), (config.vocab_size, width)
        ),
        f'{embeddings}.position_embedding.weight': weights.Target(
            ('position', 'table'), (config.max_position_embeddings, width)
        ),
    }
    for index in range(config.num_hidden_layers):
        source, layer = f'text_model.encoder.layers.{index}', f'layer{index}'
        parts = {'q': 'query', 'k': 'key', 'v': 'value', 'out': 'out'}
        for theirs, ours in parts.items():
            targets |= weights.dense_targets(
                f'{source}.self_attn.{theirs}_proj', (layer, 'attention', ours), (width, width)
            )
        feed = (layer, 'feed_forward')
        targets |= weights.dense_targets(f'{source}.mlp.fc1', (*feed, 'expand'), (width, hidden))
        targets |= weights.dense_targets(f'{source}.mlp.fc2', (*feed, 'reduce'), (hidden, width))
        for number in (1, 2):
            targets |= weights.norm_targets(
                f'{source}.layer_norm{number}', (layer, f'norm{number - 1}'), width
            )
    targets |= weights.norm_targets('text_model.final_layer_norm', ('norm',), width)
    return targets | weights.dense_targets(
        'text_projection', ('projection',), (width, config.projection_dim), use_bias=False
    )
