"""Swin UNETR (Hatamizadeh et al., 2022; Tang et al., CVPR 2022), the backbone of ZePT (Sec. 4)."""

import math

import flax.linen as nn
import jax.numpy as jnp

from maxquery_jax.errors import UserError
from maxquery_jax.models import layers, remat
from maxquery_jax.models.backbones.swin_transformer import SwinTransformer
from maxquery_jax.ops.fold import fold_of, refold
from maxquery_jax.typing import Array, PixelFeatures


class UpBlock(nn.Module, kw_only=True):
    """Transposed convolution to twice the resolution, skip connection, residual block.

    Attributes:
        features: channels of the skip connection and of the output.
        conv_form: formulation of `ops.conv.conv3d`.
        dtype: compute dtype.
    """

    features: int
    conv_form: str = 'plain'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array) -> Array:
        """Maps [B, d, h, w, C] and a skip [B, D, H, W, features] to the latter's shape."""
        depth, height, width = skip.shape[1:4]
        # A fold of two is what up-sampling leaves of an unfolded map.
        fold = 2 if fold_of(self.conv_form, self.features, width) == 2 else 1
        x = layers.ConvTranspose3D(
            features=self.features,
            stride=(2, 2, 2),
            use_bias=False,
            fold=fold,
            dtype=self.dtype,
            name='up',
        )(x)
        x = refold(x, fold, 1)[:, :depth, :height, :width]
        return layers.ResidualBlock(
            features=self.features, form=self.conv_form, dtype=self.dtype, name='block'
        )(x, skip)


class SwinUNETR(nn.Module, kw_only=True):
    """Swin Transformer encoder and convolutional decoder, without the segmentation head.

    Equal to MONAI's `SwinUNETR` with the same weights. Level l has stride 2^l: `encoder_block{l}`
    refines its skip connection (level 0 sees the image; the coarsest skip goes in raw) and
    `decoder_block{l}` restores it; `bottleneck` refines the deepest state.

    Deviation: MONAI refuses sides that are not multiples of 32. Here the transformer pads odd
    grids with zeros, as MONAI's own transformer does, and the decoder drops what an upsampled map
    has more than its skip connection. Nothing changes where sides are multiples of the stride.

    Attributes:
        feature_size: channels at strides 1 and 2; they double from there on.
        depths: blocks per stage of the transformer; their number sets that of the levels.
        num_heads: heads per stage.
        window_size: side of the attention windows, in tokens.
        qkv_bias: whether queries, keys and values have a bias.
        normalize: whether hidden states are layer-normalised for the decoder.
        merging: patch merging: 'merging', 'mergingv2' (MONAI's two correct orders) or 'legacy'
            (its order before 2025, which drops two of eight voxels; for weights trained with it).
        residual_conv: a residual convolution block before each stage (MONAI's `use_v2`).
        conv_form: formulation of `ops.conv.conv3d`: 'plain', 'scan' or 'auto'.
        remat: which activations of a block are kept, see `models.remat`.
        dtype: compute dtype.
    """

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    qkv_bias: bool = True
    normalize: bool = True
    merging: str = 'merging'
    residual_conv: bool = False
    conv_form: str = 'plain'
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @property
    def output_strides(self) -> tuple[int, ...]:
        """1, 2, 4, ... of the decoder; the encoder's lack the first."""
        return tuple(2**level for level in range(len(self.depths) + 2))

    @property
    def encoder_widths(self) -> dict[int, int]:
        """Channels of the hidden states by output stride."""
        return {2**level: self._features(level) for level in range(1, len(self.depths) + 2)}

    def __call__(self, image: Array, *, train: bool = False) -> PixelFeatures:
        """Computes the pixel features of an image.

        Args:
            image: [B, D, H, W, P].
            train: unused, part of the backbones' common interface.

        Returns:
            Features by output stride s, of ceil(side / s) voxels along each axis. The encoder's
            are the transformer's hidden states, as in ZePT, so that the coarsest differs from the
            decoder's.

        Raises:
            UserError: if the coarsest features would be a single voxel.
        """
        encoder, decoder = self.pyramid(image, train=train)
        return PixelFeatures(
            encoder=dict(zip(self.output_strides[1:], encoder, strict=True)),
            decoder=dict(zip(self.output_strides, decoder, strict=True)),
            full=decoder[0],
        )

    @nn.compact
    def pyramid(self, image: Array, *, train: bool = False) -> tuple[list[Array], list[Array]]:
        """Hidden states from stride 2 on, decoder features from stride 1 on, fine to coarse."""
        del train  # no dropout
        self.check_patch(image.shape[1:4])
        states = SwinTransformer(
            features=self.feature_size,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            qkv_bias=self.qkv_bias,
            normalize=self.normalize,
            merging=self.merging,
            residual_conv=self.residual_conv,
            conv_form=self.conv_form,
            remat=self.remat,
            dtype=self.dtype,
            name='swin',
        )(image)
        num_stages = len(self.depths)
        skips = [
            self._block(self._features(level), f'encoder_block{level}')(x)
            for level, x in enumerate([image, *states[: num_stages - 1]])
        ]
        skips.append(states[num_stages - 1])
        x = self._block(self._features(num_stages + 1), 'bottleneck')(states[-1])
        decoder = [x]
        for level in reversed(range(num_stages + 1)):
            x = remat.rematerialise(UpBlock, self.remat)(
                features=self._features(level),
                conv_form=self.conv_form,
                dtype=self.dtype,
                name=f'decoder_block{level}',
            )(x, skips[level])
            decoder.append(x)
        return states, decoder[::-1]

    def check_patch(self, patch_size: tuple[int, ...]) -> None:
        """Raises UserError if the coarsest features of a patch are a single voxel.

        Normalised over one voxel, features are zero whatever the image.
        """
        stride = self.output_strides[-1]
        if math.prod(-(-side // stride) for side in patch_size) < 2:
            raise UserError(
                f'patch_size {tuple(patch_size)}: Swin UNETR with {len(self.depths)} stages needs '
                f'a side of more than {stride} voxels; use a larger patch or fewer entries in '
                'model.backbone.depths and num_heads'
            )

    def _features(self, level: int) -> int:
        """Channels at stride 2^level."""
        return self.feature_size * 2 ** max(level - 1, 0)

    def _block(self, features: int, name: str) -> layers.ResidualBlock:
        return remat.rematerialise(layers.ResidualBlock, self.remat)(
            features=features, form=self.conv_form, dtype=self.dtype, name=name
        )
