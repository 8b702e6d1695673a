"""Makes nnunet_resampling.npz with nnU-Net's own code: run it with a Python that has nnunetv2."""

import pathlib

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    resample_data_or_seg_to_shape,
)
from scipy import ndimage

CASES = {
    'isotropic': ((18, 20, 22), (2.0, 1.5, 1.5), (1.7, 1.8, 1.3)),
    'anisotropic': ((8, 24, 26), (5.0, 0.9, 0.9), (3.0, 1.1, 0.8)),
}


def main():
    rng = np.random.default_rng(0)
    out = {}
    for name, (shape, old, new) in CASES.items():
        image = ndimage.gaussian_filter(rng.normal(size=shape) * 900, 1.2).astype(np.float32)
        fields = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(4)]
        label = np.argmax(fields, axis=0).astype(np.uint8)
        target = compute_new_shape(shape, old, new)
        settings = {'order_z': 0, 'force_separate_z': None}
        resample = resample_data_or_seg_to_shape
        image_out = resample(image[None], target, old, new, is_seg=False, order=3, **settings)
        label_out = resample(
            label[None].astype(np.int16), target, old, new, is_seg=True, order=1, **settings
        )
        out |= {
            f'{name}_old': old, f'{name}_new': new, f'{name}_image': image, f'{name}_label': label,
            f'{name}_image_out': image_out[0], f'{name}_label_out': label_out[0].astype(np.uint8),
        }  # fmt: skip
    np.savez_compressed(pathlib.Path(__file__).parent / 'nnunet_resampling.npz', **out)


if __name__ == '__main__':
    main()
