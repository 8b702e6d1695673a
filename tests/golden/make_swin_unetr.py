"""Makes `swin_unetr.npz` from MONAI's Swin UNETR.

Run with an environment that has torch and monai:
    python tests/golden/make_swin_unetr.py
Weights and inputs are not stored: both sides draw them with `draw` under the peer's names. Of every
hidden state, decoder level and logit map the file holds `SAMPLES` values at voxels that both sides
draw as well (`<case>/<name>`, channels last), and parameter counts.
"""

import pathlib
import zlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent
SAMPLES = 1000

# Name to the peer's options and the input [B, D, H, W, P]. Every second block is shifted. With
# window 7, the last two stages have grids smaller than the window along some or all axes.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    'merging': (
        {'downsample': 'merging', 'window_size': 7, 'depths': (2, 1, 2, 1)},
        (1, 64, 32, 32, 1),
    ),
    'mergingv2': (
        {
            'downsample': 'mergingv2',
            'window_size': 3,
            'depths': (1, 2, 1, 1),
            'use_v2': True,
            'qkv_bias': False,
        },
        (2, 32, 32, 64, 2),
    ),
    'legacy': (
        {'downsample': 'legacy', 'window_size': 4, 'depths': (2, 1, 1, 1), 'normalize': False},
        (1, 32, 64, 32, 1),
    ),
    # The transformer alone: sides that neither patches, mergings nor windows divide.
    'odd': (
        {'downsample': 'merging', 'window_size': 5, 'depths': (2, 1, 1, 1)},
        (2, 13, 22, 28, 1),
    ),
}
OPTIONS = {
    'feature_size': 12,
    'out_channels': 2,
    'num_heads': (3, 6, 12, 12),
}
PAPER = {'paper_14': 14, 'paper_2': 2}  # name to output channels of the full-size network


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on a name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def draw_weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the peer, float32, in the peer's layout.

    Args:
        case: key of CASES.
        name: the peer's name, such as `swinViT.layers1.0.blocks.0.attn.qkv.weight`.
        shape: the peer's shape.
    """
    values = draw(f'{case}/{name}', shape)
    if name.endswith(('norm.weight', 'norm1.weight', 'norm2.weight')):
        values = 1 + 0.2 * values
    elif name.endswith('bias'):
        values = 0.2 * values
    elif not name.endswith('bias_table'):
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def sample(case: str, name: str, output: np.ndarray) -> np.ndarray:
    """`SAMPLES` values of an output, channels last, at places that depend on its name."""
    rng = np.random.default_rng(zlib.crc32(f'{case}/{name}/places'.encode()))
    return output.ravel()[rng.integers(0, output.size, SAMPLES)]


def _legacy_merging():
    """The merging that MONAI had before 2025, on top of today's class."""
    import torch
    from monai.networks.nets.swin_unetr import PatchMergingV2

    class LegacyMerging(PatchMergingV2):
        def forward(self, x):
            corners = ('000', '100', '010', '001', '101', '010', '001', '111')
            starts = [[int(digit) for digit in corner] for corner in corners]
            x = torch.cat([x[:, z::2, y::2, w::2] for z, y, w in starts], -1)
            return self.reduction(self.norm(x))

    return LegacyMerging


def _network(options: dict[str, Any], channels: int):
    from monai.networks.nets.swin_unetr import SwinUNETR

    options = {**OPTIONS, **options}
    if options['downsample'] == 'legacy':
        options['downsample'] = _legacy_merging()
    return SwinUNETR(in_channels=channels, **options).eval()


def _outputs(network, image, transformer_only: bool) -> dict[str, Any]:
    """Hidden states, decoder levels by stride and logits."""
    outputs = {}
    for index, state in enumerate(network.swinViT(image, network.normalize)):
        outputs[f'encoder{2 ** (index + 1)}'] = state
    if transformer_only:
        return outputs
    blocks = ('decoder1', 'decoder2', 'decoder3', 'decoder4', 'decoder5', 'encoder10')
    for level, block in enumerate(blocks):
        getattr(network, block).register_forward_hook(
            lambda _module, _inputs, output, level=level: outputs.update(
                {f'decoder{2**level}': output.clone()}
            )
        )
    outputs['logits'] = network(image)
    return outputs


def make_outputs() -> dict[str, np.ndarray]:
    """Samples of the small networks' outputs and parameter counts of all."""
    import torch

    arrays = {}
    for case, (options, shape) in CASES.items():
        network = _network(options, shape[-1])
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                weight = draw_weight(case, name, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(weight))
            image = draw(f'{case}/image', shape).astype(np.float32)
            tensor = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
            for name, output in _outputs(network, tensor, case == 'odd').items():
                last = np.moveaxis(output.numpy(), 1, -1)
                arrays[f'{case}/{name}'] = sample(case, name, last)
                arrays[f'{case}/{name}/shape'] = np.array(last.shape)
        arrays[f'{case}/parameters'] = np.array(sum(p.numel() for p in network.parameters()))
        names = {name: tuple(p.shape) for name, p in network.named_parameters()}
        arrays[f'{case}/names'] = np.array(list(names))
        arrays[f'{case}/shapes'] = np.array([str(shape) for shape in names.values()])
    for name, classes in PAPER.items():
        options = {
            'feature_size': 48,
            'depths': (2, 2, 2, 2),
            'num_heads': (3, 6, 12, 24),
            'window_size': 7,
            'downsample': 'merging',
            'out_channels': classes,
        }
        network = _network(options, 1)
        arrays[f'{name}/parameters'] = np.array(sum(p.numel() for p in network.parameters()))
    return arrays


if __name__ == '__main__':
    np.savez_compressed(FOLDER / 'swin_unetr.npz', **make_outputs())
