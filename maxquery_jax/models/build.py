"""`build_model(config.model, ...)`: the only reader of the model's configuration."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax.baselines.synthcp.model import SynthCP
from maxquery_jax.baselines.synthcp.networks import Discriminator, Generator
from maxquery_jax.baselines.universal import TextVectors, UniversalModel
from maxquery_jax.errors import UserError
from maxquery_jax.models.backbones.interface import Backbone
from maxquery_jax.models.backbones.swin_transformer import MERGING_ORDERS
from maxquery_jax.models.backbones.swin_unetr import SwinUNETR
from maxquery_jax.models.backbones.topology import Triple, plan_topology
from maxquery_jax.models.backbones.transunet import TransUNet
from maxquery_jax.models.backbones.unet import UNet
from maxquery_jax.models.kmax_decoder import DecoderOptions
from maxquery_jax.models.maxquery import MaxQuery
from maxquery_jax.models.remat import POLICIES
from maxquery_jax.models.segmenter import Segmenter
from maxquery_jax.models.zept import ZePT
from maxquery_jax.models.zept_decoders import ZePTOptions
from maxquery_jax.ops.conv import FORMS

BACKBONES = ('unet', 'swin_unetr', 'transunet')
ZEPT_STAGES = {'zept_stage1': 1, 'zept_stage2': 2}
OBJECTIVES = ('segmentation', 'maxquery', 'synthcp', 'universal', *ZEPT_STAGES)
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build_model(
    cfg: Any,
    *,
    num_classes: int,
    patch_size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    objective: str,
    conv_form: str = 'plain',
    zept: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds the model that a stage trains.

    Args:
        cfg: `config.model`, fields as in `configs/base.py`.
        num_classes: K, background included.
        patch_size: voxels (z, y, x), from which the backbone's topology is planned.
        spacing_mm: voxel size (z, y, x) in mm.
        objective: 'segmentation' for the backbone with segmentation heads, 'maxquery',
            'synthcp' for the first with a generator and a discriminator beside it, 'universal',
            or a stage of ZePT.
        conv_form: formulation of the convolutions, see `ops.conv`.
        zept: what names and texts decide in ZePT and in the Universal Model: `num_fundamental`,
            `hosts` (one entry per advanced query) and `texts` (a vector per query).

    Returns:
        `Segmenter`, `MaxQuery`, `SynthCP`, `UniversalModel` or `ZePT`; all hold the same backbone,
        named 'backbone'.

    Raises:
        UserError: a field that is unknown, inconsistent, or does not fit the patch.
    """
    _check_choice('objective', objective, OBJECTIVES)
    _check_choice('model.dtype', cfg.dtype, tuple(DTYPES))
    if num_classes < 2:
        raise UserError(
            f'{num_classes} known classes: segmentation needs background and at least one more; '
            'annotate a class in the data set'
        )
    backbone = build_backbone(
        cfg.backbone,
        patch_size=patch_size,
        spacing_mm=spacing_mm,
        conv_form=conv_form,
        remat=cfg.get('remat', 'none'),
        dtype=DTYPES[cfg.dtype],
    )
    if objective in ZEPT_STAGES:
        return _build_zept(cfg, backbone, ZEPT_STAGES[objective], zept or {})
    if objective == 'universal':
        texts = TextVectors((zept or {})['texts'])
        return UniversalModel(backbone=backbone, text=texts, dtype=DTYPES[cfg.dtype])
    if objective != 'maxquery':
        segmenter = Segmenter(
            backbone=backbone,
            num_classes=num_classes,
            deep_supervision=cfg.backbone.deep_supervision,
        )
        if objective == 'segmentation':
            return segmenter
        return _build_synthcp(cfg, segmenter, patch_size, spacing_mm)
    return _build_maxquery(cfg, backbone, num_classes, patch_size)


def _build_maxquery(cfg: Any, backbone: Any, num_classes: int, patch_size: Triple) -> MaxQuery:
    decoder = cfg.decoder
    _check_decoder(decoder, backbone, patch_size)
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


def _build_zept(cfg: Any, backbone: Any, stage: int, sizes: Mapping[str, Any]) -> ZePT:
    where, strides = 'model.zept', tuple(cfg.zept.output_strides)
    named = ('organs', 'tumours', 'knowledge')
    fields = {name: value for name, value in cfg.zept.items() if name not in named}
    _check_strides(strides, backbone, where)
    try:
        options = ZePTOptions(
            **{**fields, 'output_strides': strides},
            num_fundamental=sizes['num_fundamental'],
            num_advanced=len(sizes['hosts']),
            text_dim=sizes['texts'].shape[1],
            dtype=DTYPES[cfg.dtype],
        )
    except ValueError as error:
        raise UserError(f'{where}: {error}') from error
    for name in ('query_dim', 'refine_dim', 'num_heads', 'mlp_ratio'):
        if cfg.zept[name] < 1:
            raise UserError(f'{where}.{name} {cfg.zept[name]} must be positive')
    _check_heads(f'{where}.num_heads', options.num_heads, options.refine_dim)
    for stride in strides:
        width = backbone.encoder_widths[stride]
        _check_heads(f'{where}.num_heads (stride {stride})', options.num_heads, width)
    if options.temperature <= 0:
        raise UserError(f'{where}.temperature {options.temperature} must be positive')
    return ZePT(backbone=backbone, options=options, stage=stage, hosts=sizes['hosts'])


def _build_synthcp(
    cfg: Any, segmenter: Segmenter, patch_size: Triple, spacing_mm: tuple[float, float, float]
) -> SynthCP:
    sizes = cfg.synthcp
    # Its own plan: not every backbone has one.
    topology = plan_topology(patch_size, spacing_mm, max_stages=cfg.backbone.max_stages or None)
    shared: dict[str, Any] = {
        'topology': topology,
        'conv_form': segmenter.backbone.conv_form,
        'dtype': DTYPES[cfg.dtype],
    }
    return SynthCP(
        segmenter=segmenter,
        generator=Generator(
            base_features=sizes.base_features,
            max_features=sizes.max_features,
            convs_per_stage=cfg.backbone.convs_per_stage,
            label_features=sizes.label_features,
            **shared,
        ),
        discriminator=Discriminator(
            base_features=sizes.discriminator_features,
            num_layers=sizes.discriminator_layers,
            num_scales=sizes.discriminator_scales,
            **shared,
        ),
    )


def build_backbone(
    cfg: Any,
    *,
    patch_size: Triple,
    spacing_mm: tuple[float, float, float],
    conv_form: str = 'plain',
    remat: str = 'none',
    dtype: Any = jnp.float32,
) -> Any:
    """Builds the backbone that `cfg.name` names.

    Args:
        cfg: `config.model.backbone`, fields as in `configs/base.py`.
        patch_size: voxels (z, y, x).
        spacing_mm: voxel size (z, y, x) in mm.
        conv_form: formulation of the convolutions, see `ops.conv`.
        remat: which activations are kept for the backward pass, see `models.remat`.
        dtype: compute dtype.

    Returns:
        A Flax module that is a `Backbone`.

    Raises:
        UserError: a field that is unknown, inconsistent, or does not fit the patch.
    """
    _check_choice('model.backbone.name', cfg.name, BACKBONES)
    _check_choice('model.remat', remat, POLICIES)
    _check_choice('model.conv_form', conv_form, FORMS)
    if cfg.name == 'swin_unetr':
        return _build_swin_unetr(cfg, patch_size, conv_form=conv_form, remat=remat, dtype=dtype)
    topology = plan_topology(
        patch_size,
        spacing_mm,
        base=cfg.base_features,
        cap=cfg.max_features,
        max_stages=cfg.max_stages or None,
    )
    shared = {
        'topology': topology,
        'convs_per_stage': cfg.convs_per_stage,
        'conv_form': conv_form,
        'dropout_rate': cfg.get('dropout_rate', 0.0),
        'remat': remat,
        'dtype': dtype,
    }
    if cfg.name == 'unet':
        return UNet(**shared)
    where = 'model.backbone.transformer'
    if min(cfg.transformer_layers, cfg.transformer_dim, cfg.transformer_heads) < 1:
        raise UserError(f'{where}_layers, _dim and _heads must be positive')
    _check_heads(f'{where}_heads', cfg.transformer_heads, cfg.transformer_dim)
    depth, height, width = (
        n // s for n, s in zip(patch_size, topology.cumulative_strides[-1], strict=True)
    )
    return TransUNet(
        grid=(depth, height, width),
        transformer_layers=cfg.transformer_layers,
        transformer_dim=cfg.transformer_dim,
        transformer_heads=cfg.transformer_heads,
        **shared,
    )


def _build_swin_unetr(
    cfg: Any, patch_size: Triple, *, conv_form: str, remat: str, dtype: Any
) -> SwinUNETR:
    where = 'model.backbone'
    depths, num_heads = tuple(cfg.depths), tuple(cfg.num_heads)
    if len(depths) != len(num_heads) or min((*depths, *num_heads), default=0) < 1:
        raise UserError(
            f'{where}.depths {depths} and num_heads {num_heads} need one positive number per stage'
        )
    for name, least in {'feature_size': 1, 'window_size': 2}.items():
        if cfg[name] < least:
            raise UserError(f'{where}.{name} {cfg[name]} must be at least {least}')
    for stage, heads in enumerate(num_heads):
        _check_heads(f'{where}.num_heads[{stage}]', heads, cfg.feature_size * 2**stage)
    _check_choice(f'{where}.patch_merging', cfg.patch_merging, tuple(MERGING_ORDERS))
    if cfg.get('dropout_rate', 0.0):
        raise UserError(
            f'{where}.dropout_rate {cfg.dropout_rate}: Swin UNETR has no dropout; use the backbone '
            'unet or transunet, or set it to 0'
        )
    backbone = SwinUNETR(
        feature_size=cfg.feature_size,
        depths=depths,
        num_heads=num_heads,
        window_size=cfg.window_size,
        merging=cfg.patch_merging,
        residual_conv=cfg.residual_conv,
        conv_form=conv_form,
        remat=remat,
        dtype=dtype,
    )
    backbone.check_patch(patch_size)
    return backbone


def _check_heads(field: str, heads: int, width: int) -> None:
    if width % heads:
        raise UserError(f'{field} {heads} must divide the {width} channels that it is to share')


def _check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f'{field} is {value!r}; allowed: {", ".join(allowed)}')


def _check_decoder(decoder: Any, backbone: Backbone, patch_size: Triple) -> None:
    where = 'model.decoder'
    groups = tuple(decoder.query_groups)
    if len(groups) != 3 or min(groups) < 1 or sum(groups) != decoder.num_queries:
        raise UserError(
            f'{where}.query_groups {groups} must be three positive counts (background, organ, '
            f'tumour) that add up to num_queries {decoder.num_queries}'
        )
    _check_strides(tuple(decoder.output_strides), backbone, where)
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


def _check_strides(strides: tuple[int, ...], backbone: Backbone, where: str) -> None:
    available = sorted(backbone.encoder_widths, reverse=True)
    missing = [s for s in strides if s not in available]
    if missing or not strides:
        raise UserError(
            f'{where}.output_strides {strides}: the backbone has no features of stride '
            f'{", ".join(map(str, missing)) or "()"}; for this patch and spacing there are '
            f'{", ".join(map(str, available))}'
        )
