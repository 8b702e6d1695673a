"""The CLIP-driven Universal Model (Liu et al., ICCV 2023): a row of ZePT Tab. 1 and 3.

One binary mask per class. A controller turns the text vector of a class and what the patch shows
as a whole into the parameters of three small convolutions, which run over the pixel features.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax import axes
from maxquery_jax.losses.masks import mask_losses, query_targets, supervised_queries
from maxquery_jax.models.attention import Dtype
from maxquery_jax.models.layers import EPSILON, Dense
from maxquery_jax.models.partition import constrain
from maxquery_jax.ops.targets import Parents
from maxquery_jax.typing import Array

MAX_GROUPS = 16
_FLOAT32 = {'precision': jax.lax.Precision.HIGHEST, 'preferred_element_type': jnp.float32}


@flax.struct.dataclass
class UniversalOutputs:
    """Outputs of the Universal Model.

    Attributes:
        mask_logits: [B, C, D, H, W] before the sigmoid, float32.
    """

    mask_logits: Array


class TextVectors:
    """Text vectors of a model's classes: constants that compare and hash by value.

    Linen hashes the fields of a module, which arrays do not allow.

    Args:
        vectors: [C, T], one row per class.

    Raises:
        ValueError: if that is no matrix of finite numbers.
    """

    def __init__(self, vectors: Any):
        array = np.array(vectors, np.float32)
        if array.ndim != 2 or not array.size:
            raise ValueError(f'text vectors must be [classes, features], got {array.shape}')
        if not np.isfinite(array).all():
            raise ValueError('text vectors must be finite')
        array.setflags(write=False)
        self.array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextVectors) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))

    def __repr__(self) -> str:
        return f'TextVectors({self.array.shape[0]} x {self.array.shape[1]})'


class UniversalModel(nn.Module, kw_only=True):
    """A backbone with a text-driven head.

    Deviation: where 16 groups do not divide the channels of a group norm, it has as many as their
    largest divisor below 16 says. Text vectors are taken as the encoder gave them, which are
    CLIP's in the official code; any encoder's will do.

    Attributes:
        backbone: image to PixelFeatures.
        text: of the C classes, in the order of the masks.
        features: width of the controller's two inputs.
        dynamic_features: F, width of the dynamic convolutions.
        dtype: compute dtype; statistics, controller and dynamic convolutions are float32.
    """

    backbone: nn.Module
    text: TextVectors
    features: int = 256
    dynamic_features: int = 8
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Array,
        *,
        train: bool = False,
        freeze_backbone: bool = False,
        text: Array | None = None,
    ) -> UniversalOutputs:
        """Segments a batch of patches.

        Args:
            image: [B, D, H, W, P].
            train: passed to the backbone; the head does not depend on it.
            freeze_backbone: stop gradients at the pixel features.
            text: [C', T] of other classes than the model's own, for which masks are wanted.
        """
        features = self.backbone(image, train=train)
        if freeze_backbone:
            features = jax.tree.map(jax.lax.stop_gradient, features)
        deepest = features.encoder[max(features.encoder)]
        parameters = self._control(deepest, self.text.array if text is None else text)
        pixels = _norm_relu(features.full, 'pixel_norm', self.dtype)
        pixels = Dense(features=self.dynamic_features, dtype=self.dtype, name='pixel')(pixels)
        logits = dynamic_masks(pixels, parameters)
        return UniversalOutputs(mask_logits=constrain(logits, axes.RESPONSE))

    def _control(self, deepest: Array, text: Any) -> Array:
        """Parameters [B, C, `num_dynamic(F)`] of the dynamic convolutions."""
        vectors = jnp.asarray(text, jnp.float32)
        words = nn.relu(Dense(features=self.features, name='text_projection')(vectors))
        patch = _norm_relu(deepest, 'global_norm', jnp.float32)
        patch = jnp.mean(patch, axis=(1, 2, 3))
        patch = Dense(features=self.features, name='global_projection')(patch)
        shape = (patch.shape[0], *words.shape)
        both = [jnp.broadcast_to(patch[:, None], shape), jnp.broadcast_to(words[None], shape)]
        size = num_dynamic(self.dynamic_features)
        return Dense(features=size, name='controller')(jnp.concatenate(both, axis=-1))


def num_groups(channels: int) -> int:
    """Groups of a group norm: the largest divisor of the channels up to 16."""
    return max(n for n in range(1, MAX_GROUPS + 1) if channels % n == 0)


def _norm_relu(x: Array, name: str, dtype: Dtype) -> Array:
    """Group norm, ReLU; a submodule `name` of the calling module."""
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    norm = nn.GroupNorm(
        num_groups=num_groups(x.shape[-1]),
        epsilon=EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=nn.with_logical_partitioning(ones, (axes.NORM,)),
        bias_init=nn.with_logical_partitioning(zeros, (axes.NORM,)),
        name=name,
    )
    return nn.relu(norm(x))


def num_dynamic(width: int) -> int:
    """Parameters of the convolutions F -> F -> F -> 1: 153 for F = 8."""
    return 2 * (width * width + width) + width + 1


def dynamic_masks(pixels: Array, parameters: Array) -> Array:
    """Runs each class's own three 1x1x1 convolutions, with ReLU between them, over the pixels.

    One slice of the height at a time (meshes split the depth), recomputed in the backward pass:
    the hidden features of all classes are C x F maps of the patch, 0.9 GB a layer for 32 classes
    at 96^3.

    Args:
        pixels: [B, D, H, W, F].
        parameters: [B, C, `num_dynamic(F)`]: the weights [F, F], [F, F] and [1, F] (out, in), row
            by row, then the biases [F], [F] and [1].

    Returns:
        [B, C, D, H, W] float32.
    """
    batch, depth, height, breadth, width = pixels.shape
    parameters = parameters.astype(jnp.float32)
    num_classes = parameters.shape[1]
    outs = (width, width, 1)
    ends = np.cumsum([width * out for out in outs] + list(outs))[:-1]

    @jax.checkpoint
    def masks_of(x: Array) -> Array:  # [B, F, L] to [B, C, L]
        parts = jnp.split(parameters, ends, axis=-1)
        for layer, out in enumerate(outs):
            weight = parts[layer].reshape(batch, num_classes, out, width)
            inputs, x = ('bcil', nn.relu(x)) if layer else ('bil', x)
            x = jnp.einsum(f'bcoi,{inputs}->bcol', weight, x, **_FLOAT32)
            x += parts[len(outs) + layer][..., None]
        return x[:, :, 0]

    slices = jnp.transpose(pixels.astype(jnp.float32), (2, 0, 4, 1, 3))
    masks = jax.lax.map(masks_of, slices.reshape(height, batch, width, -1))  # [H, B, C, D * W]
    masks = masks.reshape(height, batch, num_classes, depth, breadth)
    return jnp.transpose(masks, (1, 2, 3, 0, 4))


def universal_objective(
    outputs: UniversalOutputs,
    label: Array,
    *,
    parents: Parents,
    query_classes: Sequence[int],
    class_mask: Array | None = None,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> tuple[Array, dict[str, Array]]:
    """Masked back-propagation: binary cross-entropy and Dice of the annotated masks alone.

    Deviation: means are over the annotated classes of a sample, then over samples; the official
    code takes the mean over all annotated pairs of a batch, in which a sample that annotates more
    classes weighs more. They agree for samples of one data set.

    Args:
        outputs: of `UniversalModel`.
        label: [B, D, H, W] integer class, 0 to K - 1.
        parents: of the K classes, see `ops.targets.class_targets`; an organ's mask holds its
            tumours.
        query_classes: class of each of the C masks, `losses.masks.UNSEEN` for none.
        class_mask: [B, K] annotated classes; all by default.
        dice_weight: of the Dice loss.
        ce_weight: of the cross-entropy.

    Returns:
        The loss, and float32 scalars 'loss', 'dice' and 'ce'.

    Raises:
        ValueError: if there is not one class per mask.
    """
    num_masks = outputs.mask_logits.shape[1]
    if len(query_classes) != num_masks:
        raise ValueError(f'{len(query_classes)} query_classes for {num_masks} masks')
    if class_mask is None:
        class_mask = jnp.ones((label.shape[0], len(parents)), bool)
    counted = supervised_queries(class_mask, query_classes)
    targets = query_targets(label, parents, query_classes)
    dice, ce = mask_losses(outputs.mask_logits, targets, counted)
    loss = dice_weight * dice + ce_weight * ce
    return loss, {'loss': loss, 'dice': dice, 'ce': ce}
