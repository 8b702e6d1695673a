"""ZePT: a backbone, fundamental queries for organs, advanced queries for tumours (ZePT Sec. 3)."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.errors import UserError
from maxquery_jax.models.layers import Dense, LayerNorm
from maxquery_jax.models.maxquery import average_pool, resize_to
from maxquery_jax.models.partition import constrain
from maxquery_jax.models.zept_blocks import MaskHead, positive_parameter
from maxquery_jax.models.zept_decoders import (
    FundamentalDecoder,
    QueryRefinementDecoder,
    ZePTOptions,
)
from maxquery_jax.ops import anomaly, prompts
from maxquery_jax.typing import Array, PixelFeatures

STAGE1_MODULES = ('backbone', 'fundamental_decoder', 'mask_head', 'class_head')
"""Top-level names of stage I's parameters; stage II holds them, and more beside them."""


@flax.struct.dataclass
class ZePTOutputs:
    """Outputs of ZePT; what stage I lacks is None or empty.

    Attributes:
        mask_logits: [B, N, D, H, W] in stage I, [B, N + M, D, H, W] in stage II, before the
            sigmoid, fundamental queries first; float32.
        class_logits: [B, N, N] class embeddings of the fundamental queries.
        knowledge_queries: [B, N + M, T] queries in the text space (Eq. 11).
        temperature: scalar tau of Eq. 11.
        anomaly: raw map [B, d, h, w] of each output stride (Eq. 7).
        prompts: bool [B, d, h, w] of each output stride (Eq. 8, or of boxes, Tab. 5).
        num_fundamental: N.
    """

    mask_logits: Array
    class_logits: Array
    knowledge_queries: Array | None = None
    temperature: Array | None = None
    anomaly: dict[int, Array] = flax.struct.field(default_factory=dict)
    prompts: dict[int, Array] = flax.struct.field(default_factory=dict)
    num_fundamental: int = flax.struct.field(pytree_node=False, default=25)

    @property
    def organ_logits(self) -> Array:
        """[B, N, D, H, W] of the fundamental queries."""
        return self.mask_logits[:, : self.num_fundamental]

    @property
    def tumour_logits(self) -> Array:
        """[B, M, D, H, W] of the advanced queries."""
        return self.mask_logits[:, self.num_fundamental :]


class ZePT(nn.Module, kw_only=True):
    """Zero-shot pan-tumour segmentation; stage II's parameters contain stage I's.

    Unspecified in the paper: the jointly updated fundamental queries come back to the width of
    stage I by a linear map that starts at zero, are added to stage I's, and meet stage I's mask
    and class heads. Stage II so starts with exactly stage I's organs.

    Attributes:
        backbone: image to PixelFeatures.
        options: sizes and choices.
        stage: 1 or 2.
        hosts: for each tumour the organs (0 to N - 1) it grows in; `anomaly_logit_bias` only.
    """

    backbone: nn.Module
    options: ZePTOptions = ZePTOptions()
    stage: int = 2
    hosts: tuple[tuple[int, ...], ...] = ()

    @nn.compact
    def __call__(
        self,
        image: Array,
        *,
        train: bool = False,
        freeze_backbone: bool = False,
        prompt: Array | None = None,
    ) -> ZePTOutputs:
        """Segments a batch of patches.

        Args:
            image: [B, D, H, W, P].
            train: grouping is noisy (stream 'dropout').
            freeze_backbone: stop gradients at the pixel features.
            prompt: [B, D, H, W] bool, voxels inside relaxed boxes (stage II, Tab. 5), in place of
                the self-generated prompts. A sample without any voxel attends everywhere, and so
                does every sample where `prompt_source` is 'box' and no prompt is given.
        """
        if self.stage not in (1, 2):
            raise ValueError(f'stage must be 1 or 2, got {self.stage}')
        options = self.options
        frozen = self.stage == 2 and options.freeze_stage1
        features = self.backbone(image, train=train)
        if freeze_backbone or frozen:
            features = jax.tree.map(jax.lax.stop_gradient, features)
        states = FundamentalDecoder(options=options, name='fundamental_decoder')(
            features.encoder, train=train and not frozen
        )
        if frozen:
            states = jax.lax.stop_gradient(states)
        width = features.full.shape[-1]
        mask_head = MaskHead(features=width, dtype=options.dtype, name='mask_head')
        class_head = Dense(
            features=options.num_fundamental, features_axis=axes.CLASS, name='class_head'
        )
        if self.stage == 1:
            return ZePTOutputs(
                mask_logits=self._masks(mask_head(states[-1]), features.full),
                class_logits=class_head(states[-1]),
                num_fundamental=options.num_fundamental,
            )

        maps, masks = self._prompts(features, states, mask_head, prompt)
        both = QueryRefinementDecoder(options=options, name='refinement_decoder')(
            states[-1], features.encoder, masks, {s: _unit_map(m) for s, m in maps.items()}
        )
        organs, tumours = jnp.split(both, [options.num_fundamental], axis=1)
        organs = states[-1] + self._return(organs, states[-1].shape[-1])
        advanced_head = MaskHead(features=width, dtype=options.dtype, name='advanced_mask_head')
        embeddings = jnp.concatenate([mask_head(organs), advanced_head(tumours)], axis=1)
        knowledge, temperature = self._knowledge(both)
        return ZePTOutputs(
            mask_logits=self._bias(self._masks(embeddings, features.full)),
            class_logits=class_head(organs),
            knowledge_queries=knowledge,
            temperature=temperature,
            anomaly=maps,
            prompts=masks,
            num_fundamental=options.num_fundamental,
        )

    def _prompts(
        self,
        features: PixelFeatures,
        states: tuple[Array, ...],
        mask_head: MaskHead,
        prompt: Array | None,
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """Anomaly maps and prompts by output stride; prompts from outside are their own maps."""
        options = self.options
        if not options.qrd:
            return {}, {}
        strides = options.output_strides
        grids = {s: features.encoder[s].shape[1:4] for s in strides}
        if prompt is None and options.prompt_source == 'box':
            prompt = jnp.zeros(features.full.shape[:4], bool)
        if prompt is not None:
            masks = {s: prompts.coarsen_prompt(prompt, grids[s]) for s in strides}
            return {s: mask.astype(jnp.float32) for s, mask in masks.items()}, masks
        if options.prompt_source == 'mask':
            logits = mask_logits(mask_head(states[-1]), features.full)
            full = jax.lax.stop_gradient(anomaly.query_logit_score(logits))
            maps = {s: _coarsen(full, grids[s]) for s in strides}
        else:
            is_encoder = options.prompt_source == 'encoder'
            pixels = features.encoder if is_encoder else features.decoder
            maps = {}
            for stride, queries in zip(strides, states, strict=True):
                _check_width(queries, pixels[stride], stride)
                maps[stride] = prompts.scale_anomaly(queries, pixels[stride])
        return maps, {s: prompts.mask_prompt(m, options.threshold) for s, m in maps.items()}

    def _return(self, queries: Array, width: int) -> Array:
        """The joint update of the fundamental queries in stage I's width; zero at first."""
        linear = Dense(
            features=width,
            kernel_init=nn.initializers.zeros_init(),
            dtype=self.options.dtype,
            name='fundamental_out',
        )
        return linear(queries).astype(jnp.float32)

    def _knowledge(self, queries: Array) -> tuple[Array | None, Array | None]:
        """Queries in the text space and the temperature of Eq. 11; nothing without `qka`."""
        options = self.options
        if not options.qka:
            return None, None
        linear = Dense(features=options.text_dim, dtype=options.dtype, name='knowledge_projection')
        projected = linear(queries)
        if options.alignment == 'dot':
            projected = LayerNorm(name='knowledge_norm')(projected)
        temperature = positive_parameter(self, 'temperature', options.temperature)
        return projected.astype(jnp.float32), temperature

    def _masks(self, embeddings: Array, full: Array) -> Array:
        """Mask logits, shifted to the prior by a learned scalar where there is one."""
        logits, prior = mask_logits(embeddings, full), self.options.mask_prior
        if prior == 0.5:
            return logits
        init = nn.initializers.constant(math.log(prior / (1 - prior)))
        boxed = nn.with_logical_partitioning(init, (axes.NORM,))
        shift: Any = self.param('mask_shift', boxed, (1,), jnp.float32)
        return logits + shift[0]

    def _bias(self, logits: Array) -> Array:
        if not self.options.anomaly_logit_bias:
            return logits
        organs, tumours = jnp.split(logits, [self.options.num_fundamental], axis=1)
        return jnp.concatenate(prompts.anomaly_logit_bias(organs, tumours, self.hosts), axis=1)


def mask_logits(embeddings: Array, full: Array) -> Array:
    """Mask proposals before the sigmoid (ZePT Sec. 3.1): embeddings [B, N, F] times features.

    Args:
        embeddings: [B, N, F].
        full: [B, D, H, W, F] the vision decoder's output at the input's resolution.

    Returns:
        [B, N, D, H, W] float32.
    """
    logits = prompts.query_response(embeddings, full)
    return constrain(logits, axes.RESPONSE)


def anomaly_map(outputs: ZePTOutputs) -> Array:
    """Anomaly score at full resolution: minus the largest organ logit, [B, D, H, W] float32."""
    return anomaly.query_logit_score(outputs.organ_logits)


def _unit_map(anomaly: Array) -> Array:
    return jax.lax.stop_gradient(prompts.min_max(anomaly))


def _coarsen(full: Array, grid: tuple[int, ...]) -> Array:
    """Mean of a map [B, D, H, W] over the voxels of a coarser grid."""
    size = full.shape[1:]
    sd, sh, sw = (max(1, n // g) for n, g in zip(size, grid, strict=True))
    if all(n % g == 0 for n, g in zip(size, grid, strict=True)):
        return average_pool(full[..., None], (sd, sh, sw))[..., 0]
    return resize_to(full[..., None], grid)[..., 0]


def _check_width(queries: Array, features: Array, stride: int) -> None:
    if queries.shape[-1] != features.shape[-1]:
        raise UserError(
            f"prompt_source 'decoder': at stride {stride} the decoder has {features.shape[-1]} "
            f"channels and the encoder {queries.shape[-1]}; use 'encoder' or 'mask', or a backbone "
            'whose widths agree (swin_unetr)'
        )
