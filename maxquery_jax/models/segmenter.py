"""A backbone with 1x1x1 segmentation heads: nnU-Net, Swin UNETR, TransUNet."""

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import layers
from maxquery_jax.models.backbones.interface import Backbone
from maxquery_jax.typing import Array, SegmentationOutputs


class Segmenter(nn.Module, kw_only=True):
    """Backbone and segmentation heads, on a U-Net: nnU-Net.

    Attributes:
        backbone: image to pixel features.
        num_classes: K, background included.
        deep_supervision: whether the coarser decoder stages have heads too.
    """

    backbone: Backbone
    num_classes: int
    deep_supervision: bool = True

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> SegmentationOutputs:
        """Segments an image.

        Args:
            image: [B, D, H, W, P].
            train: whether to compute the auxiliary outputs.

        Returns:
            Float32 logits; `aux_outputs` (fine to coarse, one per coarser decoder stage, the
            bottleneck not counted) only with `train` and `deep_supervision`.
        """
        _, decoder = self.backbone.pyramid(image, train=train)
        seg_logits = self._head(0)(decoder[0])
        aux_outputs = ()
        # All heads exist from `init` on, so that the tree of parameters does not hang on `train`.
        if self.deep_supervision and (train or self.is_initializing()):
            coarser = enumerate(decoder[1:-1], start=1)
            aux_outputs = tuple(self._head(stage)(x) for stage, x in coarser)
        return SegmentationOutputs(
            seg_logits=seg_logits.astype(jnp.float32),
            aux_outputs=tuple(z.astype(jnp.float32) for z in aux_outputs) if train else (),
            features=decoder[0],
        )

    def _head(self, stage: int) -> layers.Conv3D:
        """Segmentation head of a decoder stage."""
        return layers.Conv3D(
            features=self.num_classes,
            kernel_size=(1, 1, 1),
            form=self.backbone.conv_form,
            features_axis=axes.CLASS,
            dtype=self.backbone.dtype,
            name=f'seg_head{stage}',
        )
