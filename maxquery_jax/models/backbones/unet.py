"""The nnU-Net of MaxQuery's pixel encoder and decoder (MaxQuery Sec. 3.1, 4.1)."""

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax import axes
from maxquery_jax.models import layers
from maxquery_jax.models.backbones.topology import Topology, Triple
from maxquery_jax.typing import Array, PixelFeatures, SegmentationOutputs


class ConvStage(nn.Module, kw_only=True):
    """The convolutions of one resolution.

    Attributes:
        features: channels of each convolution.
        kernel_size: (z, y, x) of each convolution.
        stride: (z, y, x) of the first convolution.
        num_convs: number of conv - norm - activation units, named conv0, conv1, ...
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    features: int
    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    num_convs: int = 2
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, D, H, W, Cin] to [B, D', H', W', features]."""
        for index in range(self.num_convs):
            x = layers.ConvNormAct(
                features=self.features,
                kernel_size=self.kernel_size,
                stride=self.stride if index == 0 else (1, 1, 1),
                form=self.conv_form,
                dtype=self.dtype,
                name=f'conv{index}',
            )(x)
        return x


class UNet(nn.Module, kw_only=True):
    """nnU-Net's plain convolutional U-Net without its segmentation heads.

    Encoder stage s is named `encoder_stage{s}`; `upsample{s}` and `decoder_stage{s}` restore the
    resolution of encoder stage s.

    Attributes:
        topology: stages, see `plan_topology`.
        convs_per_stage: convolutions per stage, in encoder and decoder.
        conv_form: formulation of `ops.conv.conv3d`: 'plain', 'scan' or 'auto'.
        dtype: compute dtype.
    """

    topology: Topology
    convs_per_stage: int = 2
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    def __call__(self, image: Array, *, train: bool = False) -> PixelFeatures:
        """Computes the pixel features of an image.

        Args:
            image: [B, D, H, W, P], sides divisible by the topology's total stride.
            train: unused, part of the backbones' common interface.

        Returns:
            Features by output stride. Where two stages share an output stride, the coarser one
            is listed.

        Raises:
            UserError: if a side of the image is not divisible by the total stride.
        """
        del train  # no dropout, no batch statistics
        encoder, decoder = self.pyramid(image)
        strides = self.topology.output_strides
        return PixelFeatures(
            encoder=dict(zip(strides, encoder, strict=True)),
            decoder=dict(zip(strides, decoder, strict=True)),
            full=decoder[0],
        )

    @nn.compact
    def pyramid(self, image: Array) -> tuple[list[Array], list[Array]]:
        """Encoder and decoder features of every stage, fine to coarse; the coarsest is shared."""
        topology = self.topology
        topology.check_patch(image.shape[1:4])
        x = image.astype(self.dtype)
        encoder = []
        for stage in range(topology.num_stages):
            x = self._stage(stage, topology.strides[stage], 'encoder')(x)
            encoder.append(x)
        decoder = [x]
        for stage in reversed(range(topology.num_stages - 1)):
            x = layers.ConvTranspose3D(
                features=topology.features[stage],
                stride=topology.strides[stage + 1],
                dtype=self.dtype,
                name=f'upsample{stage}',
            )(x)
            x = jnp.concatenate([x, encoder[stage]], axis=-1)
            x = self._stage(stage, (1, 1, 1), 'decoder')(x)
            decoder.append(x)
        return encoder, decoder[::-1]

    def _stage(self, stage: int, stride: Triple, path: str) -> ConvStage:
        """The convolutions of one stage of the encoder or decoder."""
        return ConvStage(
            features=self.topology.features[stage],
            kernel_size=self.topology.kernels[stage],
            stride=stride,
            num_convs=self.convs_per_stage,
            conv_form=self.conv_form,
            dtype=self.dtype,
            name=f'{path}_stage{stage}',
        )


class UNetSegmenter(nn.Module, kw_only=True):
    """U-Net with 1x1x1 segmentation heads: nnU-Net.

    Attributes:
        backbone: the U-Net.
        num_classes: K, background included.
        deep_supervision: whether the coarser decoder stages have heads too.
    """

    backbone: UNet
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
            encoder's bottleneck not counted) only with `train` and `deep_supervision`.
        """
        _, decoder = self.backbone.pyramid(image)
        seg_logits = self._head(0)(decoder[0])
        aux_outputs = ()
        # All heads exist from `init` on, so that the tree of parameters does not hang on `train`.
        if self.deep_supervision and (train or self.is_initializing()):
            coarser = enumerate(decoder[1:-1], start=1)
            aux_outputs = tuple(self._head(stage)(x) for stage, x in coarser)
        return SegmentationOutputs(
            seg_logits=seg_logits.astype(jnp.float32),
            aux_outputs=tuple(z.astype(jnp.float32) for z in aux_outputs) if train else (),
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
