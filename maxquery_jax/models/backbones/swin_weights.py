"""Weights of MONAI's `SwinUNETR` as parameters of ours."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxquery_jax.errors import UserError

_STAGE = r'layers(?P<number>\d)\.0'
_BLOCK = _STAGE + r'\.blocks\.(?P<block>\d+)'
_CONV = r'(?P<conv>conv\d)\.conv'
_KIND = r'\.(?P<kind>weight|bias)'

# MONAI's names, without the leading 'swinViT.', and our paths. `number` and `layer` count from 1
# there and from 0 here. Older files (and self-supervised weights) say fc for linear.
_RULES = (
    (r'patch_embed\.proj' + _KIND, 'swin/patch_embed'),
    (_BLOCK + r'\.(?P<norm>norm\d)' + _KIND, 'swin/stage{number}/block{block}/{norm}'),
    (
        _BLOCK + r'\.attn\.(?P<kind>relative_position_bias_table)',
        'swin/stage{number}/block{block}/attention',
    ),
    (_BLOCK + r'\.attn\.qkv' + _KIND, 'swin/stage{number}/block{block}/attention/qkv'),
    (_BLOCK + r'\.attn\.proj' + _KIND, 'swin/stage{number}/block{block}/attention/out'),
    (
        _BLOCK + r'\.mlp\.(?:linear|fc)(?P<layer>\d)' + _KIND,
        'swin/stage{number}/block{block}/mlp/layer{layer}',
    ),
    (_STAGE + r'\.downsample\.reduction' + _KIND, 'swin/stage{number}/merging'),
    (_STAGE + r'\.downsample\.norm' + _KIND, 'swin/stage{number}/merging_norm'),
    (
        r'layers(?P<number>\d)c\.0\.layer\.' + _CONV + _KIND,
        'swin/stage{number}/residual_conv/{conv}',
    ),
    (r'encoder10\.layer\.' + _CONV + _KIND, 'bottleneck/{conv}'),
    (r'encoder(?P<number>\d)\.layer\.' + _CONV + _KIND, 'encoder_block{number}/{conv}'),
    (r'decoder(?P<number>\d)\.transp_conv\.conv' + _KIND, 'decoder_block{number}/up'),
    (r'decoder(?P<number>\d)\.conv_block\.' + _CONV + _KIND, 'decoder_block{number}/block/{conv}'),
    (r'out\.conv\.conv' + _KIND, 'seg_head0'),
)
_CONVS = {'conv1': 'conv0', 'conv2': 'conv1', 'conv3': 'shortcut'}
# Buffers that follow from the window, and what self-supervised training leaves in its files.
_IGNORED = re.compile(r'.*\.relative_position_index|mask_token|norm\.(weight|bias)')


def params_from_monai(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Renames and transposes the weights of MONAI's `SwinUNETR`.

    Args:
        weights: MONAI's state by name. The prefixes 'module.' and 'swinViT.' may be missing, so
            that weights of the transformer alone are accepted too.

    Returns:
        Nested dictionaries as of `Segmenter` on `SwinUNETR`: 'backbone' and, if `weights` hold the
        output layer, 'seg_head0'. What they lack is lacking here: compare with the model's tree
        before use.

    Raises:
        UserError: for a name that is not one of the network's.
    """
    params: dict[str, Any] = {}
    for name, value in weights.items():
        short = name.removeprefix('module.').removeprefix('swinViT.')
        if _IGNORED.fullmatch(short):
            continue
        path = _translate(name, short)
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = _transpose(np.asarray(value), path)
    return params


def _translate(name: str, short: str) -> list[str]:
    """Our path of a weight, as a list of keys."""
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, short)
        if match is None:
            continue
        labels = match.groupdict()
        for key in ('number', 'layer'):
            if key in labels:
                labels[key] = str(int(labels[key]) - 1)
        if 'conv' in labels:
            labels['conv'] = _CONVS.get(labels['conv'], labels['conv'])
        path = template.format(**labels).split('/')
        kernel = 'scale' if 'norm' in path[-1] else 'kernel'
        leaf = {'weight': kernel, 'bias': 'bias'}.get(labels['kind'], 'relative_bias')
        return [*([] if path[0] == 'seg_head0' else ['backbone']), *path, leaf]
    raise UserError(
        f'weight {name!r} is none of Swin UNETR: give the state of a MONAI SwinUNETR as arrays by '
        'name'
    )


def _transpose(value: np.ndarray, path: list[str]) -> np.ndarray:
    """From PyTorch's order of axes to ours; [Cout, Cin] and [Cout, Cin, z, y, x] there."""
    if path[-1] != 'kernel':
        return value
    if value.ndim == 2:
        return value.T
    if path[-2] == 'up':  # [Cin, Cout, z, y, x]
        return value.transpose(2, 3, 4, 0, 1)
    value = value.transpose(2, 3, 4, 1, 0)
    return value.reshape(-1, value.shape[-1]) if path[-2] == 'patch_embed' else value
