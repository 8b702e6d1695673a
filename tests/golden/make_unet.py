"""Makes `unet.npz` and `topology.npz` from nnU-Net's own network and planner.

Run with an environment that has torch, nnunetv2 and dynamic_network_architectures:
    python tests/golden/make_unet.py
Weights and inputs are not stored: both sides draw them with `draw` under the peer's names. The
file holds outputs `<case>/<i>` (fine to coarse, channels last) and parameter counts.
"""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent

# Name to (input [B, D, H, W, P], features, kernels, strides, convs per stage, classes).
CASES = {
    'isotropic': (
        (1, 16, 16, 16, 1),
        (4, 8, 12),
        ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        2,
        3,
    ),
    'anisotropic': (
        (2, 4, 16, 24, 2),
        (4, 6, 8, 10),
        ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)),
        2,
        3,
    ),
    'one_conv': (
        (1, 8, 6, 10, 3),
        (5, 7, 7),
        ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (1, 2, 2), (2, 1, 1)),
        1,
        4,
    ),
}

# Name to (kernels, strides, classes) of MaxQuery's two patches, as nnU-Net plans them.
FLAT, CUBE, PLANE, HALF = (1, 3, 3), (3, 3, 3), (1, 2, 2), (2, 2, 2)
PAPER = {
    'pancreas': ((FLAT, FLAT, *(CUBE,) * 4), ((1, 1, 1), PLANE, PLANE, HALF, HALF, PLANE), 9),
    'liver': ((FLAT, *(CUBE,) * 5), ((1, 1, 1), PLANE, HALF, HALF, HALF, PLANE), 7),
}
PAPER_FEATURES = (32, 64, 128, 256, 320, 320)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on a name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def draw_weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the peer, float32, in the peer's layout.

    Args:
        case: key of CASES.
        name: the peer's name, such as `encoder.stages.0.0.convs.0.conv.weight`.
        shape: the peer's shape.
    """
    values = draw(f'{case}/{name}', shape)
    if name.endswith('norm.weight'):
        values = 1 + 0.2 * values
    elif name.endswith('bias'):
        values = 0.2 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def _network(channels, features, kernels, strides, convs, classes):
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=channels,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=kernels,
        strides=strides,
        n_conv_per_stage=convs,
        num_classes=classes,
        n_conv_per_stage_decoder=convs,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={'eps': 1e-5, 'affine': True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={'inplace': True},
        deep_supervision=True,
    )


def make_outputs() -> dict[str, np.ndarray]:
    """Outputs of the small networks and parameter counts of all."""
    import torch

    arrays = {}
    for case, (shape, features, kernels, strides, convs, classes) in CASES.items():
        network = _network(shape[-1], features, kernels, strides, convs, classes)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                weight = draw_weight(case, name, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(weight))
            image = draw(f'{case}/image', shape).astype(np.float32)
            outputs = network(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
        for index, output in enumerate(outputs):
            arrays[f'{case}/{index}'] = np.moveaxis(output.numpy(), 1, -1)
        arrays[f'{case}/parameters'] = np.array(sum(p.numel() for p in network.parameters()))
    for name, (kernels, strides, classes) in PAPER.items():
        network = _network(1, PAPER_FEATURES, kernels, strides, 2, classes)
        arrays[f'{name}/parameters'] = np.array(sum(p.numel() for p in network.parameters()))
    return arrays


def make_topologies() -> dict[str, np.ndarray]:
    """The planner's answers for patches and spacings of every kind; stages padded with zeros."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )

    rng = np.random.default_rng(0)
    asked = [
        ((28, 192, 320), (3.0, 0.419, 0.419)),
        ((40, 192, 224), (3.0, 0.76, 0.76)),
        ((96, 96, 96), (1.5, 1.5, 1.5)),
        ((24, 48, 48), (5.0, 3.0, 3.0)),
        ((32, 32, 32), (1.0, 1.0, 1.0)),
    ]
    while len(asked) < 60:
        patch = tuple(int(n) for n in rng.integers(1, 20, 3) * rng.choice([4, 8, 16]))
        spacing = tuple(float(mm) for mm in np.round(np.exp(rng.uniform(-1, 2, 3)), 3))
        answer = get_pool_and_conv_props(spacing, patch, 4, 999999)
        if len(answer[1]) > 1 and tuple(answer[3]) == patch:  # it pads where not divisible
            asked.append((patch, spacing))
    strides = np.zeros((len(asked), 10, 3), np.int8)
    kernels = np.zeros((len(asked), 10, 3), np.int8)
    for index, (patch, spacing) in enumerate(asked):
        _, pools, convs, padded, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
        assert tuple(padded) == patch, patch
        strides[index, : len(pools)] = pools
        kernels[index, : len(convs)] = convs
    return {
        'patch_size': np.array([patch for patch, _ in asked]),
        'spacing_mm': np.array([spacing for _, spacing in asked]),
        'strides': strides,
        'kernels': kernels,
    }


if __name__ == '__main__':
    np.savez_compressed(FOLDER / 'unet.npz', **make_outputs())
    np.savez_compressed(FOLDER / 'topology.npz', **make_topologies())
