"""The nnU-Net of MaxQuery's pixel encoder and decoder (MaxQuery Sec. 3.1, 4.1)."""

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax.models import layers, remat
from maxquery_jax.models.backbones.topology import Topology, Triple
from maxquery_jax.ops.fold import fold_of, refold
from maxquery_jax.typing import Array, PixelFeatures


class ConvStage(nn.Module, kw_only=True):
    """The convolutions of one resolution.

    Attributes:
        features: channels of each convolution.
        kernel_size: (z, y, x) of each convolution.
        stride: (z, y, x) of the first convolution.
        num_convs: number of conv - norm - activation units, named conv0, conv1, ...
        conv_form: formulation of `ops.conv.conv3d`.
        fold: of the output, see `layers.Conv3D`.
        dtype: compute dtype.
    """

    features: int
    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    num_convs: int = 2
    conv_form: str = 'plain'
    fold: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        """Maps volumes [B, D, H, W, Ci], to be concatenated, to [B, D', H', W', features]."""
        for index in range(self.num_convs):
            x = layers.ConvNormAct(
                features=self.features,
                kernel_size=self.kernel_size,
                stride=self.stride if index == 0 else (1, 1, 1),
                form=self.conv_form,
                fold=self.fold,
                dtype=self.dtype,
                name=f'conv{index}',
            )(*parts)
            parts = (x,)
        return parts[0]


class UNet(nn.Module, kw_only=True):
    """nnU-Net's plain convolutional U-Net without its segmentation heads.

    Encoder stage s is named `encoder_stage{s}`; `upsample{s}` and `decoder_stage{s}` restore the
    resolution of encoder stage s.

    Unspecified in the paper: nnU-Net has no dropout, and where MC Dropout put it is not said. Here
    it follows the two coarsest stages of the encoder and the coarsest of the decoder, never a
    stage at the input's resolution.

    Attributes:
        topology: stages, see `plan_topology`.
        convs_per_stage: convolutions per stage, in encoder and decoder.
        conv_form: formulation of `ops.conv.conv3d`: 'plain', 'scan', 'planes' or 'auto'.
        dropout_rate: probability that a feature of those stages is dropped while training
            (stream 'dropout'); 0 for none.
        remat: which activations of a stage are kept, see `models.remat`.
        dtype: compute dtype.
    """

    topology: Topology
    convs_per_stage: int = 2
    conv_form: str = 'plain'
    dropout_rate: float = 0.0
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __call__(self, image: Array, *, train: bool = False) -> PixelFeatures:
        """Computes the pixel features of an image.

        Args:
            image: [B, D, H, W, P], sides divisible by the topology's total stride.
            train: whether dropout is active.

        Returns:
            Features by output stride. Where two stages share an output stride, the coarser one
            is listed.

        Raises:
            UserError: if a side of the image is not divisible by the total stride.
        """
        encoder, decoder = self.pyramid(image, train=train)
        strides = self.output_strides
        return PixelFeatures(
            encoder=dict(zip(strides, encoder, strict=True)),
            decoder=dict(zip(strides, decoder, strict=True)),
            full=decoder[0],
        )

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Output stride of every stage, fine to coarse."""
        return self.topology.output_strides

    @property
    def encoder_widths(self) -> dict[int, int]:
        """Channels of the encoder by output stride."""
        return dict(zip(self.output_strides, self.topology.features, strict=True))

    @nn.compact
    def pyramid(self, image: Array, *, train: bool = False) -> tuple[list[Array], list[Array]]:
        """Encoder and decoder features of every stage, fine to coarse; the coarsest is shared."""
        topology = self.topology
        topology.check_patch(image.shape[1:4])
        folds = self._folds(image.shape[3])
        x, fold = image.astype(self.dtype), 1
        encoder = []
        for stage in range(topology.num_stages):
            needed = topology.strides[stage][2] * folds[stage] if folds[stage] > 1 else 1
            x = refold(x, fold, needed)
            x = self._stage(stage, topology.strides[stage], 'encoder', folds[stage])(x)
            x, fold = self._dropout(x, stage, train=train, path='encoder'), folds[stage]
            encoder.append(x)
        x, fold = self._bottleneck(refold(x, fold, 1), train=train), 1
        encoder[-1] = x
        decoder = [x]
        for stage in reversed(range(topology.num_stages - 1)):
            stride = topology.strides[stage + 1]
            # Up-sampling multiplies the fold: the input gets what the stage divides by the stride.
            upsampled = folds[stage] if folds[stage] % stride[2] == 0 else 1
            x = layers.ConvTranspose3D(
                features=topology.features[stage],
                stride=stride,
                fold=upsampled,
                dtype=self.dtype,
                name=f'upsample{stage}',
            )(refold(x, fold, max(upsampled // stride[2], 1)))
            fold = folds[stage]
            x = refold(x, upsampled, fold)
            x = self._stage(stage, (1, 1, 1), 'decoder', fold)(x, encoder[stage])
            x = self._dropout(x, stage, train=train, path='decoder')
            decoder.append(x)
        encoder[:-1] = [refold(x, f, 1) for x, f in zip(encoder[:-1], folds, strict=False)]
        unfolded = [refold(x, f, 1) for x, f in zip(decoder[:0:-1], folds, strict=False)]
        return encoder, [*unfolded, decoder[0]]

    def _folds(self, width: int) -> tuple[int, ...]:
        """Fold of the features of every stage for an image of this width, 1 for none."""
        strides = self.topology.cumulative_strides
        return tuple(
            fold_of(self.conv_form, features, width // stride[2])
            for features, stride in zip(self.topology.features, strides, strict=True)
        )

    def _bottleneck(self, x: Array, *, train: bool) -> Array:
        """What a kind of U-Net does to the coarsest features [B, d, h, w, C]: here, nothing."""
        del train
        return x

    def _dropout(self, x: Array, stage: int, *, train: bool, path: str) -> Array:
        """Dropout after a stage, if it is one of the coarsest."""
        if not self.dropout_rate or stage < max(1, self.topology.num_stages - 2):
            return x
        drop = nn.Dropout(self.dropout_rate, name=f'{path}_dropout{stage}')
        return drop(x, deterministic=not train)

    def _stage(self, stage: int, stride: Triple, path: str, fold: int) -> ConvStage:
        """The convolutions of one stage of the encoder or decoder."""
        return remat.rematerialise(ConvStage, self.remat)(
            features=self.topology.features[stage],
            kernel_size=self.topology.kernels[stage],
            stride=stride,
            num_convs=self.convs_per_stage,
            conv_form=self.conv_form,
            fold=fold,
            dtype=self.dtype,
            name=f'{path}_stage{stage}',
        )
