"""The two query decoders of ZePT (Sec. 3.1 and 3.2): fundamental queries, then advanced ones."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import initializers
from maxquery_jax.models.attention import Dtype, gelu
from maxquery_jax.models.layers import Dense, LayerNorm
from maxquery_jax.models.partition import gather
from maxquery_jax.models.zept_blocks import (
    GroupingBlock,
    GroupViTBlock,
    MaskedAttentionBlock,
    SelfAttentionBlock,
    SoftCrossAttentionBlock,
)
from maxquery_jax.ops.prompts import attention_bias
from maxquery_jax.typing import Array

PROMPT_SOURCES = ('encoder', 'decoder', 'mask', 'box')
GROUPINGS = ('hard', 'soft', 'groupvit')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZePTOptions:
    """Sizes and choices of ZePT; the defaults are the paper's where it names them.

    Attributes:
        num_fundamental: N, one query per organ.
        num_advanced: M, one query per tumour.
        output_strides: of the encoder features that the blocks of both decoders see, in order.
        query_dim: width of the initial fundamental queries; block i has the width of its features.
        refine_dim: width of the advanced queries.
        num_heads: of every attention; divides all widths.
        mlp_ratio: hidden width of the feed-forward parts over the query width.
        text_dim: width of the text embeddings.
        mask_prior: probability that all masks start at. Unspecified in the paper; other than 0.5 a
            learned scalar is added to the logits, so that few steps need not be spent on learning
            that most voxels are in no mask. Anomaly maps rank the same.
        threshold: of the normalised anomaly maps (Eq. 8).
        box_margin: voxels by which box prompts are relaxed (Tab. 5), of the input's grid.
            Unspecified in the paper.
        prompt_source: what the fundamental queries are compared with for Eq. 7: 'encoder' features
            of the scale, as the paper reads; 'decoder' features of the scale, as in the released
            code, whose widths must then equal the encoder's; or 'mask', stage I's mask logits at
            full resolution, the one affinity that its losses train, averaged to the scale. 'box'
            compares nothing: stage II is trained with relaxed boxes around the tumours of the label
            (Tab. 5) and takes boxes when it predicts; without any it attends everywhere.
        advanced_init: 'zeros' as in the paper or 'normal' as in the released code.
        ofg: object-aware feature grouping; without it, self-attention among the queries takes its
            place (MaskFormer's decoder; Tab. 4).
        grouping: 'hard' or 'soft' assignment of voxels to queries; or 'groupvit', see
            `GroupViTBlock` (Tab. 12).
        qrd: the query refinement decoder; without it, all queries are one set that the same blocks
            update without prompts (Tab. 4).
        pma: prompt-based masked attention; without it, all voxels are attended to and the
            normalised anomaly map is one more channel of the features (Tab. 4).
        qka: query-knowledge alignment; without it, there is no projection to the texts (Tab. 4).
        alignment: 'cosine' as in the paper; 'dot' as in the released code, which normalises the
            projection (LayerNorm) instead of the similarity.
        temperature: where that of the alignment starts; it is learned.
        anomaly_logit_bias: see `ops.prompts.anomaly_logit_bias` (released code).
        freeze_stage1: stage II trains neither the backbone nor the fundamental decoder, which then
            runs without noise (older released code).
        dtype: compute dtype; responses and logits are float32.
    """

    num_fundamental: int = 25
    num_advanced: int = 20
    output_strides: tuple[int, ...] = (32, 16, 8, 4)
    query_dim: int = 768
    refine_dim: int = 768
    num_heads: int = 8
    mlp_ratio: int = 4
    text_dim: int = 768
    mask_prior: float = 0.5
    threshold: float = 0.5
    box_margin: float = 5.0
    prompt_source: str = 'encoder'
    advanced_init: str = 'zeros'
    ofg: bool = True
    grouping: str = 'hard'
    qrd: bool = True
    pma: bool = True
    qka: bool = True
    alignment: str = 'cosine'
    temperature: float = 0.07
    anomaly_logit_bias: bool = False
    freeze_stage1: bool = False
    dtype: Dtype = jnp.float32

    def __post_init__(self):
        choices = {
            'prompt_source': PROMPT_SOURCES,
            'advanced_init': ('zeros', 'normal'),
            'grouping': GROUPINGS,
            'alignment': ('cosine', 'dot'),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} must be one of {allowed}, got {getattr(self, name)!r}')
        if not 0 < self.mask_prior < 1:
            raise ValueError(f'mask_prior must lie in (0, 1), got {self.mask_prior}')
        if self.box_margin < 0:
            raise ValueError(f'box_margin must not be negative, got {self.box_margin}')
        if self.prompt_source == 'box' and not self.qrd:
            raise ValueError("prompt_source 'box' prompts the query refinement decoder: set qrd")


def initial_queries(module: nn.Module, shape: tuple[int, int], batch: int, init: Any) -> Array:
    """Learned queries [B, N, C] from parameter 'queries' [N, C] of `module`."""
    boxed = nn.with_logical_partitioning(init, (axes.QUERY, axes.FEATURES_OUT))
    queries: Any = module.param('queries', boxed, shape, jnp.float32)
    return jnp.broadcast_to(gather(queries)[None], (batch, *shape))


def flatten_voxels(features: Array) -> Array:
    """[B, d, h, w, C] to [B, L, C]."""
    return features.reshape(features.shape[0], -1, features.shape[-1])


class FundamentalBlock(nn.Module, kw_only=True):
    """Queries to the width of the features, soft cross-attention, grouping (ZePT Eq. 1 to 6).

    With `grouping='groupvit'`, a `GroupViTBlock` takes the place of both.

    Attributes:
        options: of the model.
    """

    options: ZePTOptions

    @nn.compact
    def __call__(self, queries: Array, features: Array, *, train: bool = False) -> Array:
        """Updates queries [B, N, C'] from features [B, d, h, w, C]; returns [B, N, C] float32."""
        options, width = self.options, features.shape[-1]
        sizes = {'mlp_ratio': options.mlp_ratio, 'dtype': options.dtype}
        linear = Dense(features=width, dtype=options.dtype, name='query_projection')
        queries = LayerNorm(name='query_norm')(gelu(linear(queries)))
        features = flatten_voxels(features)
        features = LayerNorm(dtype=options.dtype, name='feature_norm')(features)
        if options.ofg and options.grouping == 'groupvit':
            cluster = GroupViTBlock(num_heads=options.num_heads, **sizes, name='groupvit')
            return cluster(queries, features, train=train)
        attend = SoftCrossAttentionBlock(num_heads=options.num_heads, **sizes, name='soft')
        queries = attend(queries, features)
        if options.ofg:
            group = GroupingBlock(hard=options.grouping == 'hard', **sizes, name='grouping')
            return group(queries, features, train=train)
        return SelfAttentionBlock(num_heads=options.num_heads, **sizes, name='self')(queries)


class FundamentalDecoder(nn.Module, kw_only=True):
    """Fundamental queries through one block per stride of the encoder (ZePT Sec. 3.1).

    Attributes:
        options: of the model.
    """

    options: ZePTOptions

    @nn.compact
    def __call__(self, features: dict[int, Array], *, train: bool = False) -> tuple[Array, ...]:
        """Returns the queries after each block, [B, N, C_s] float32, coarse to fine.

        Args:
            features: encoder features [B, d, h, w, C_s] by output stride.
            train: whether grouping is noisy (stream 'dropout').
        """
        options = self.options
        first = features[options.output_strides[0]]
        shape = (options.num_fundamental, options.query_dim)
        queries = initial_queries(self, shape, first.shape[0], initializers.normal(1.0))
        states = []
        for i, stride in enumerate(options.output_strides):
            block = FundamentalBlock(options=options, name=f'block{i}')
            queries = block(queries, features[stride], train=train)
            states.append(queries)
        return tuple(states)


class QueryRefinementDecoder(nn.Module, kw_only=True):
    """Advanced queries through prompted blocks, then both sets through one (ZePT Sec. 3.2).

    Attributes:
        options: of the model.
    """

    options: ZePTOptions

    @nn.compact
    def __call__(
        self,
        fundamental: Array,
        features: dict[int, Array],
        prompts: dict[int, Array],
        maps: dict[int, Array],
    ) -> Array:
        """Refines the advanced queries and relates them to the fundamental ones.

        Args:
            fundamental: [B, N, C] stage I's last queries.
            features: encoder features [B, d, h, w, C_s] by output stride.
            prompts: [B, d, h, w] bool by output stride (Eq. 8); unused without `pma` or `qrd`.
            maps: [B, d, h, w] in [0, 1] by output stride, used without `pma`.

        Returns:
            [B, N + M, refine_dim] float32, fundamental queries first.
        """
        options = self.options
        shape = (options.num_advanced, options.refine_dim)
        init = nn.initializers.zeros_init()
        if options.advanced_init == 'normal':
            init = initializers.normal(1.0)
        advanced = initial_queries(self, shape, fundamental.shape[0], init)
        linear = Dense(features=options.refine_dim, dtype=options.dtype, name='fundamental_in')
        fundamental = linear(fundamental).astype(jnp.float32)
        if not options.qrd:
            both = jnp.concatenate([fundamental, advanced], axis=1)
            return self._refine(both, features, {}, {})
        advanced = self._refine(advanced, features, prompts, maps)
        both = jnp.concatenate([fundamental, advanced], axis=1)
        sizes = {'mlp_ratio': options.mlp_ratio, 'dtype': options.dtype}
        return SelfAttentionBlock(num_heads=options.num_heads, **sizes, name='joint')(both)

    def _refine(
        self,
        queries: Array,
        features: dict[int, Array],
        prompts: dict[int, Array],
        maps: dict[int, Array],
    ) -> Array:
        """The prompted blocks, coarse to fine; without prompts where the dictionaries are empty."""
        options = self.options
        for i, stride in enumerate(options.output_strides):
            pixels, bias = features[stride], None
            if options.pma and prompts:
                bias = attention_bias(prompts[stride].reshape(pixels.shape[0], -1))
            elif maps:
                channel = maps[stride][..., None].astype(pixels.dtype)
                pixels = jnp.concatenate([pixels, channel], axis=-1)
            linear = Dense(
                features=options.refine_dim, dtype=options.dtype, name=f'feature_projection{i}'
            )
            queries = MaskedAttentionBlock(
                num_heads=options.num_heads,
                mlp_ratio=options.mlp_ratio,
                dtype=options.dtype,
                name=f'block{i}',
            )(queries, gelu(linear(flatten_voxels(pixels))), bias)
        return queries
