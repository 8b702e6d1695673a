"""Visual prompts: where the advanced queries look (ZePT Eq. 7, 8 and 10, Tab. 5).

All of it is per sample: what else is in the batch changes no prompt. A prompt depends on the patch
that it is computed in, as its min-max normalisation does.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from maxquery_jax.ops.anomaly import query_logit_score
from maxquery_jax.typing import Array

Triple = tuple[int, int, int]


def query_response(queries: Array, features: Array) -> Array:
    """Affinity of every query with every voxel.

    Args:
        queries: [B, N, C].
        features: [B, d, h, w, C].

    Returns:
        [B, N, d, h, w] float32.
    """
    return jnp.einsum('bnc,bdhwc->bndhw', queries, features, preferred_element_type=jnp.float32)


def scale_anomaly(queries: Array, features: Array) -> Array:
    """Anomaly map of one scale: minus the largest response of any fundamental query (ZePT Eq. 7).

    Args:
        queries: [B, N, C] fundamental queries.
        features: [B, d, h, w, C].

    Returns:
        [B, d, h, w] float32, detached: prompts train nothing.
    """
    return jax.lax.stop_gradient(query_logit_score(query_response(queries, features)))


def min_max(anomaly: Array) -> Array:
    """Each sample's map scaled to 0..1 (the normalisation of ZePT Eq. 8).

    Unspecified in the paper: a constant map, which tells nothing, becomes one everywhere, so that
    its prompt is the whole patch. (The released code divides 0 by 0, and its comparison with NaN
    blocks no voxel either.)

    Args:
        anomaly: [B, d, h, w].

    Returns:
        [B, d, h, w] float32 in [0, 1].
    """
    anomaly = anomaly.astype(jnp.float32)
    low = jnp.min(anomaly, axis=(1, 2, 3), keepdims=True)
    span = jnp.max(anomaly, axis=(1, 2, 3), keepdims=True) - low
    return jnp.where(span > 0, (anomaly - low) / jnp.where(span > 0, span, 1.0), 1.0)


def mask_prompt(anomaly: Array, threshold: float = 0.5) -> Array:
    """Voxels that may be anomalous: normalised score at least `threshold` (ZePT Eq. 8).

    Never empty for a threshold of at most one: the largest score of a sample becomes one.

    Args:
        anomaly: [B, d, h, w] raw map.
        threshold: of the normalised map.

    Returns:
        [B, d, h, w] bool.
    """
    return jax.lax.stop_gradient(min_max(anomaly)) >= threshold


def attention_bias(prompt: Array) -> Array:
    """Zero where a prompt allows attention, minus infinity elsewhere (ZePT Eq. 10).

    A row that allows nothing would make its softmax 0/0. Such a row (an empty box prompt, or a
    threshold above one) allows everything instead, as in Mask2Former.

    Args:
        prompt: [..., L] bool, rows over the voxels.

    Returns:
        [..., L] float32 to add to the attention's logits.
    """
    allowed = prompt | ~jnp.any(prompt, axis=-1, keepdims=True)
    return jnp.where(allowed, 0.0, -jnp.inf).astype(jnp.float32)


def coarsen_prompt(prompt: Array, grid: Sequence[int]) -> Array:
    """Prompt of a coarser scale: a cell is inside if any of its voxels is (ZePT Tab. 5).

    Args:
        prompt: [B, D, H, W] bool.
        grid: (d, h, w) of the scale; cells have ceil(D / d) voxels along z, so that they begin at
            the first voxel and cover the last one.

    Returns:
        [B, d, h, w] bool.
    """
    size = prompt.shape[1:]
    cells = [-(-n // g) for n, g in zip(size, grid, strict=True)]
    after = [c * g - n for c, g, n in zip(cells, grid, size, strict=True)]
    padded = jnp.pad(prompt, [(0, 0), *((0, n) for n in after)])
    (d, h, w), (cd, ch, cw) = grid, cells
    return jnp.any(padded.reshape(-1, d, cd, h, ch, w, cw), axis=(2, 4, 6))


def rasterise_boxes(boxes: Array, shape: Triple, *, margin: float = 0.0) -> Array:
    """Prompt of relaxed 3D boxes (ZePT Tab. 5): voxels that touch a box grown by a margin.

    Args:
        boxes: [B, M, 6] (z0, y0, x0, z1, y1, x1), half-open, in voxels. A box of no extent along
            some axis is padding.
        shape: (D, H, W) of the prompt.
        margin: voxels added on every side.

    Returns:
        [B, D, H, W] bool, the union of a sample's boxes.
    """
    boxes = boxes.astype(jnp.float32)
    low, high = boxes[..., :3], boxes[..., 3:]
    is_box = jnp.all(high > low, axis=-1)  # [B, M]
    inside = []
    for axis, size in enumerate(shape):
        start = jnp.arange(size, dtype=jnp.float32)[None, None]
        first, last = low[..., axis, None] - margin, high[..., axis, None] + margin
        inside.append((start < last) & (start + 1 > first))  # [B, M, size]
    z, y, x = inside
    each = z[:, :, :, None, None] & y[:, :, None, :, None] & x[:, :, None, None, :]
    return jnp.any(each & is_box[:, :, None, None, None], axis=1)


def boxes_from_mask(mask: np.ndarray) -> np.ndarray:
    """Bounding boxes of the connected components of a mask; on the host, not for jit.

    Args:
        mask: [D, H, W] bool; components are 26-connected.

    Returns:
        [M, 6] int64 boxes as `rasterise_boxes` takes them, one per component.
    """
    whole = ndimage.find_objects(mask.astype(np.uint8))
    if not whole:
        return np.zeros((0, 6), np.int64)
    # Only the part that holds them all is labelled: four bytes per voxel of a scan would be much.
    start = np.array([s.start for s in whole[0]])
    components = np.zeros(mask[whole[0]].shape, np.int32)
    ndimage.label(mask[whole[0]], structure=np.ones((3, 3, 3)), output=components)
    found = [[(s.start, s.stop) for s in each] for each in ndimage.find_objects(components)]
    ends = np.array(found).transpose(0, 2, 1) + start  # [M, 2, 3]
    return ends.reshape(-1, 6)


def boxes_from_labels(label: Array, classes: Sequence[int]) -> Array:
    """Bounding box of each class in each patch; on the device, of fixed shape.

    Where `boxes_from_mask` boxes every lesion, here all lesions of a class share one box.

    Args:
        label: [B, D, H, W] integer class.
        classes: the M ids to box, such as those of the advanced queries; a negative one stands for
            no class.

    Returns:
        [B, M, 6] int32 boxes for `rasterise_boxes`, in the order of the classes; zeros for a class
        that the patch does not show.
    """
    ids = np.asarray(classes, np.int32)
    valid = jnp.asarray(ids >= 0)[None, :, None, None, None]
    wanted = jnp.asarray(ids)[None, :, None, None, None]
    mask = (label.astype(jnp.int32)[:, None] == wanted) & valid  # [B, M, D, H, W]
    lows, highs = [], []
    for axis in (2, 3, 4):
        others = tuple(a for a in (2, 3, 4) if a != axis)
        shown = jnp.any(mask, axis=others)  # [B, M, size]
        size = shown.shape[-1]
        low, after = jnp.argmax(shown, axis=-1), jnp.argmax(shown[..., ::-1], axis=-1)
        is_shown = jnp.any(shown, axis=-1)
        lows.append(jnp.where(is_shown, low, 0))
        highs.append(jnp.where(is_shown, size - after, 0))
    return jnp.stack([*lows, *highs], axis=-1).astype(jnp.int32)


def anomaly_logit_bias(
    organ_logits: Array, tumour_logits: Array, hosts: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Adds the anomaly map to tumour logits and takes it from their host organs' logits.

    Not in the paper; a switch for what the released code does.

    Args:
        organ_logits: [B, N, D, H, W] mask logits of the fundamental queries.
        tumour_logits: [B, M, D, H, W] mask logits of the advanced queries.
        hosts: for each tumour the organs (0 to N - 1) it grows in; an organ that hosts two tumours
            loses the map twice.

    Returns:
        Organ and tumour logits of the same shapes.

    Raises:
        ValueError: if there is not one entry of `hosts` per tumour.
    """
    if len(hosts) != tumour_logits.shape[1]:
        raise ValueError(f'{len(hosts)} entries of hosts for {tumour_logits.shape[1]} tumours')
    anomaly = query_logit_score(organ_logits)[:, None]
    times = np.zeros(organ_logits.shape[1], np.float32)
    for organs in hosts:
        times[list(organs)] += 1
    weight = jnp.asarray(times)[None, :, None, None, None]
    return organ_logits - weight * anomaly, tumour_logits + anomaly
