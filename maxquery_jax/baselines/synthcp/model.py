"""SynthCP: segmenter, generator and discriminator in one tree, its objective and its score."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from maxquery_jax.baselines.synthcp import losses
from maxquery_jax.baselines.synthcp.networks import Discriminator, Generator, one_hot
from maxquery_jax.models.segmenter import Segmenter
from maxquery_jax.typing import Array

# Where the segmenter is surer than this, its own confidence is taken: synthesis misses thin
# structures and would raise false alarms there (SynthCP).
_SURE = 0.999

Judgements = tuple[tuple[Array, ...], tuple[tuple[Array, ...], ...]]
"""Logits of each scale; features of each layer of each scale."""


@flax.struct.dataclass
class SynthesisOutputs:
    """What training minimises over.

    Attributes:
        image: [B, D, H, W, P] real.
        fake: [B, D, H, W, P] synthesised from its labels.
        real_judged: the discriminator on `image`.
        fake_judged: the discriminator on `fake`; gradients reach the discriminator alone.
        fake_shown: the same values; gradients reach the generator alone.
    """

    image: Array
    fake: Array
    real_judged: Judgements
    fake_judged: Judgements
    fake_shown: Judgements


@flax.struct.dataclass
class SynthCPOutputs:
    """A prediction.

    Attributes:
        seg_logits: [B, D, H, W, K] of the segmenter.
        similarity: [B, D, H, W] cosine of the segmenter's features for the image and for the one
            synthesised from its prediction.
    """

    seg_logits: Array
    similarity: Array


class SynthCP(nn.Module, kw_only=True):
    """A trained segmenter with a generator and a discriminator beside it.

    The segmenter's parameters keep their names ('backbone/...', 'seg_head0/...'), so that they are
    taken over from the stage before, and stay what they were: no gradient reaches them.

    Attributes:
        segmenter: what is to be judged.
        generator: labels to image.
        discriminator: image and labels to judgements.
    """

    segmenter: Segmenter
    generator: Generator
    discriminator: Discriminator

    def setup(self) -> None:
        """Gives the segmenter's parameters this module's own level of the tree."""
        nn.share_scope(self, self.segmenter)

    def __call__(
        self, image: Array, *, label: Array | None = None, train: bool = False
    ) -> SynthesisOutputs | SynthCPOutputs:
        """Synthesises and judges in training, else segments and compares.

        Args:
            image: [B, D, H, W, P], normalised.
            label: [B, D, H, W] true classes, for training.
            train: which of the two.
        """
        if self.is_initializing():
            self.segmenter(image, train=train)
            label = jnp.zeros(image.shape[:-1], jnp.int32)
        if not train:
            return self._compare(image)
        assert label is not None
        return self._synthesise(image, one_hot(label, self.segmenter.num_classes))

    def _compare(self, image: Array) -> SynthCPOutputs:
        real = self.segmenter(image)
        predicted = jnp.argmax(real.seg_logits, axis=-1)
        labels = one_hot(predicted, self.segmenter.num_classes)
        fake = self.generator(labels, channels=image.shape[-1])
        features = self.segmenter(fake).features
        assert real.features is not None and features is not None
        return SynthCPOutputs(real.seg_logits, cosine(real.features, features))

    def _synthesise(self, image: Array, labels: Array) -> SynthesisOutputs:
        """Both sides of the game at once.

        One optimiser updates both networks from the same batch. Each has its own loss, so each
        gradient must stop at the other: `fake_judged` sees a constant image, `fake_shown` a
        discriminator of constant parameters. The values agree, and XLA computes them once.
        """
        fake = self.generator(labels, channels=image.shape[-1])
        real_judged = self.discriminator(image, labels)
        fake_judged = self.discriminator(jax.lax.stop_gradient(fake), labels)
        if self.is_initializing():
            return SynthesisOutputs(image, fake, real_judged, fake_judged, fake_judged)
        constant = jax.lax.stop_gradient(self.discriminator.variables)
        fake_shown = self.discriminator.clone(parent=None).apply(constant, fake, labels)
        return SynthesisOutputs(image, fake, real_judged, fake_judged, fake_shown)  # pyright: ignore


def synthcp_objective(
    outputs: SynthesisOutputs,
    label: Array,
    *,
    feature_weight: float = 10.0,
    l1_weight: float = 10.0,
) -> tuple[Array, dict[str, Array]]:
    """Hinge losses of both networks, and for the generator feature matching and L1.

    Deviation: SPADE has a perceptual term of a VGG in place of the L1 distance; there is no such
    network for CT. Without either, a generator of this size and a few hundred steps does not find
    the intensities.

    Args:
        outputs: of `SynthCP` in training.
        label: unused, the networks have seen it.
        feature_weight: of feature matching (SPADE: 10).
        l1_weight: of the mean absolute difference of the images.

    Returns:
        The sum, and its parts: 'loss', 'd_real', 'd_fake', 'g_hinge', 'g_features', 'g_l1'.
    """
    del label
    d_real, d_fake = losses.discriminator_hinge(outputs.real_judged[0], outputs.fake_judged[0])
    constant = jax.lax.stop_gradient(outputs.real_judged[1])
    parts = {
        'd_real': d_real,
        'd_fake': d_fake,
        'g_hinge': losses.generator_hinge(outputs.fake_shown[0]),
        'g_features': losses.feature_matching(constant, outputs.fake_shown[1]),
        'g_l1': jnp.mean(jnp.abs(outputs.image - outputs.fake)),
    }
    weights = {'g_features': feature_weight, 'g_l1': l1_weight}
    loss = sum(weights.get(name, 1.0) * value for name, value in parts.items())
    return loss, {'loss': loss, **parts}  # pyright: ignore[reportReturnType]


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the last axes in float32; 0 where one is zero."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(lengths, 1e-12)


def synthcp_score(seg_logits: Array, similarity: Array) -> Array:
    """One minus the confidence: the softmax where it is above 0.999, else the similarity.

    Deviation: the reference's score is minus the confidence. The added one changes no rank, and
    keeps the differences that a half-precision file would round away near -1.

    Args:
        seg_logits: [B, D, H, W, K].
        similarity: [B, D, H, W] cosine of the features.

    Returns:
        [B, D, H, W] float32 in [0, 2], larger is more anomalous.
    """
    logits = seg_logits.astype(jnp.float32)
    log_confidence = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    doubt = -jnp.expm1(log_confidence)
    return jnp.where(doubt < 1 - _SURE, doubt, 1 - similarity)
