"""`build_model(config.model, ...)`: the only reader of the model's configuration."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.topology import Topology, plan_topology
from maxquery_jax.models.backbones.unet import UNet, UNetSegmenter
from maxquery_jax.models.kmax_decoder import DecoderOptions
from maxquery_jax.models.maxquery import MaxQuery

BACKBONES = ('unet',)
OBJECTIVES = ('segmentation', 'maxquery')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build_model(
    cfg: Any,
    *,
    num_classes: int,
    patch_size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    objective: str,
    conv_form: str = 'plain',
) -> nn.Module:
    """Builds the model that a stage trains.

    Args:
        cfg: `config.model`, fields as in `configs/base.py`.
        num_classes: K, background included.
        patch_size: voxels (z, y, x), from which the backbone's topology is planned.
        spacing_mm: voxel size (z, y, x) in mm.
        objective: 'segmentation' for the backbone with segmentation heads, 'maxquery'.
        conv_form: formulation of the convolutions, see `ops.conv`.

    Returns:
        `UNetSegmenter` or `MaxQuery`; both hold the same backbone under the name 'backbone'.

    Raises:
        UserError: a field that is unknown, inconsistent, or does not fit the patch.
    """
    _check_choice('objective', objective, OBJECTIVES)
    _check_choice('model.dtype', cfg.dtype, tuple(DTYPES))
    _check_choice('model.backbone.name', cfg.backbone.name, BACKBONES)
    if num_classes < 2:
        raise UserError(
            f'{num_classes} known classes: segmentation needs background and at least one more; '
            'annotate a class in the data set'
        )
    topology = plan_topology(
        patch_size,
        spacing_mm,
        base=cfg.backbone.base_features,
        cap=cfg.backbone.max_features,
        max_stages=cfg.backbone.max_stages or None,
    )
    backbone = UNet(
        topology=topology,
        convs_per_stage=cfg.backbone.convs_per_stage,
        conv_form=conv_form,
        dtype=DTYPES[cfg.dtype],
    )
    if objective == 'segmentation':
        return UNetSegmenter(
            backbone=backbone,
            num_classes=num_classes,
            deep_supervision=cfg.backbone.deep_supervision,
        )
    decoder = cfg.decoder
    _check_decoder(decoder, topology, patch_size)
    return MaxQuery(
        backbone=backbone,
        num_classes=num_classes,
        decoder=DecoderOptions(
            num_queries=decoder.num_queries,
            output_strides=tuple(decoder.output_strides),
            query_dim=decoder.query_dim,
            embed_dim=decoder.embed_dim,
            num_heads=decoder.num_heads,
            ffn_dim=decoder.ffn_dim,
            drop_path=decoder.drop_path,
            self_attention_input=decoder.self_attention_input,
            kmeans_reduction=decoder.kmeans_reduction,
            pixel_norm=decoder.get('pixel_norm', 'instance'),
            dtype=DTYPES[cfg.dtype],
        ),
        deep_supervision=decoder.deep_supervision,
        pixel_stride=tuple(decoder.pixel_stride),
    )


def _check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f'{field} is {value!r}; allowed: {", ".join(allowed)}')


def _check_decoder(decoder: Any, topology: Topology, patch_size: tuple[int, int, int]) -> None:
    where = 'model.decoder'
    groups = tuple(decoder.query_groups)
    if len(groups) != 3 or min(groups) < 1 or sum(groups) != decoder.num_queries:
        raise UserError(
            f'{where}.query_groups {groups} must be three positive counts (background, organ, '
            f'tumour) that add up to num_queries {decoder.num_queries}'
        )
    _check_strides(tuple(decoder.output_strides), topology)
    if decoder.num_heads < 1 or decoder.query_dim % (2 * decoder.num_heads):
        raise UserError(
            f'{where}.query_dim {decoder.query_dim} must be a multiple of 2 x num_heads '
            f'({2 * decoder.num_heads}): keys have half the width of values'
        )
    if not 0 <= decoder.drop_path < 1:
        raise UserError(f'{where}.drop_path {decoder.drop_path} must be in [0, 1)')
    stride = tuple(decoder.pixel_stride)
    divides = len(stride) == 3 and all(
        s > 0 and n % s == 0 for n, s in zip(patch_size, stride, strict=True)
    )
    if not divides:
        raise UserError(
            f'{where}.pixel_stride {stride} must be three positive numbers that divide the patch '
            f'{tuple(patch_size)}'
        )
    _check_choice(f'{where}.self_attention_input', decoder.self_attention_input, ('pre', 'post'))
    _check_choice(f'{where}.kmeans_reduction', decoder.kmeans_reduction, ('sum', 'mean'))
    pixel_norm = decoder.get('pixel_norm', 'instance')
    _check_choice(f'{where}.pixel_norm', pixel_norm, ('instance', 'l2'))


def _check_strides(strides: tuple[int, ...], topology: Topology) -> None:
    available = sorted(set(topology.output_strides), reverse=True)
    missing = [s for s in strides if s not in available]
    if missing or not strides:
        raise UserError(
            f'model.decoder.output_strides {strides}: the backbone has no features of stride '
            f'{", ".join(map(str, missing)) or "()"}; for this patch and spacing there are '
            f'{", ".join(map(str, available))}'
        )
