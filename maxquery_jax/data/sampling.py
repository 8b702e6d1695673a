"""Where a training patch is cut: nnU-Net's foreground oversampling (facts 2.3).

A *crop* is what is read; the *patch* in its centre is what augmentation returns. Crops are larger
so that a rotated patch needs no padding, so it is the patch that is kept inside the volume: a crop
kept inside would never show the network a volume's border.
"""

from collections.abc import Sequence

import numpy as np

from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError

OVERSAMPLED_ROLES = ('organ', 'tumour')


def is_forced_foreground(
    row: int, batch_size: int, oversample_rate: float, rng: np.random.Generator
) -> bool:
    """Whether a sample must contain foreground (nnU-Net: i >= round(batch * (1 - rate))).

    The last samples of a batch are forced: exactly one of two at the stock rate of 0.33, which
    makes the true rate 0.5.

    Deviation: a batch of one would never be forced by this rule; it is forced with probability
    `oversample_rate` instead.

    Args:
        row: index of the sample in the global batch.
        batch_size: size of the global batch.
        oversample_rate: wanted fraction, 0 to 1.
        rng: used for a batch of one only.
    """
    if batch_size == 1:
        return bool(rng.random() < oversample_rate)
    return row >= round(batch_size * (1 - oversample_rate))


def draw_foreground(
    store: PatchStore, case_id: str, class_ids: Sequence[int], rng: np.random.Generator
) -> np.ndarray | None:
    """Coordinates of a class drawn uniformly among those of `class_ids` that the case has.

    Args:
        store: the case's store.
        case_id: the case.
        class_ids: classes worth oversampling, see `oversampled_classes`.
        rng: random stream of the sample.

    Returns:
        [M, 3] (z, y, x) of that class, or None if the case has none of them.
    """
    present = [c for c in store.classes_present(case_id) if c in class_ids]
    return store.foreground(case_id, present[rng.integers(len(present))]) if present else None


def oversampled_classes(store: PatchStore, roles: Sequence[str]) -> tuple[int, ...]:
    """Store ids of the known foreground classes with one of `roles`.

    Raises:
        UserError: if a role is neither 'organ' nor 'tumour'.
    """
    strangers = set(roles) - set(OVERSAMPLED_ROLES)
    if strangers:
        raise UserError(
            f'oversample_roles: {sorted(strangers)[0]!r} is none of {", ".join(OVERSAMPLED_ROLES)}'
        )
    return store.manifest.ids_with_roles(roles)


def sample_box(
    shape: Sequence[int],
    crop_size: Sequence[int],
    rng: np.random.Generator,
    coords: np.ndarray | None = None,
    *,
    patch_size: Sequence[int] | None = None,
) -> tuple[int, int, int]:
    """Draws the first voxel of a crop.

    The patch in the crop's centre lies inside the volume along every axis where it fits, and is
    centred on the volume where it does not. It is placed uniformly, or around a random voxel of
    `coords`: centred on it, then shifted into the volume.

    Args:
        shape: (D, H, W) of the volume.
        crop_size: (D, H, W) of the crop.
        rng: random stream of the sample.
        coords: [M, 3] voxels one of which the patch must contain, or None.
        patch_size: (D, H, W) of the patch; None means the crop itself.

    Returns:
        (z, y, x), negative or reaching beyond the volume where the crop does.
    """
    volume, crop = np.asarray(shape), np.asarray(crop_size)
    patch = crop if patch_size is None else np.asarray(patch_size)
    slack = np.maximum(volume - patch, 0)
    if coords is None or len(coords) == 0:
        start = rng.integers(0, slack + 1)
    else:
        voxel = coords[rng.integers(len(coords))]
        start = np.clip(voxel - patch // 2, 0, slack)
    start = np.where(patch > volume, -((patch - volume) // 2), start) - (crop - patch) // 2
    z, y, x = (int(s) for s in start)
    return z, y, x
