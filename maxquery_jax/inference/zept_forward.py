"""ZePT as the sliding window calls it: a channel per label, and what makes a voxel anomalous."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from maxquery_jax.augment.intensity import normalise_intensity
from maxquery_jax.inference.tile_program import Forward
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.models.zept import ZePT
from maxquery_jax.ops.anomaly import query_logit_score
from maxquery_jax.train.query_table import QueryTable
from maxquery_jax.typing import Array, PyTree

ABSENT = -1e4
"""Logit of a label without a query: never positive, and finite, so that means stay finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZePTQueries:
    """What the masks of a loaded ZePT or Universal Model stand for.

    Attributes:
        table: label of each query.
        knowledge: texts that the queries were aligned with, for `text.embeddings.load_embeddings`.
        similarity: of Eq. 11, see `losses.alignment`.
    """

    table: QueryTable
    knowledge: str
    similarity: str

    def predicted_ids(self, stage: int) -> tuple[int, ...]:
        """Store ids of the labels that a query stands for; stage I has fundamental ones only."""
        last = self.table.num_fundamental if stage == 1 else None
        return tuple(i for i in self.table.labels[:last] if i != UNSEEN)


def zept_scores(stage: int, table: QueryTable) -> tuple[str, ...]:
    """Anomaly scores of a stage, the default one first.

    `query_logit` is the anomaly score map of Eq. 7 at full resolution: minus the largest organ
    logit, no organ's query responds. `tumour_logit` is the largest logit over all advanced queries:
    some tumour's query responds. `seen_logit` is the same over the queries of tumours that training
    labels showed, and `unseen_logit` over those of tumours that none did, whose masks nothing
    trained. `tumour_anomaly_logit` is `tumour_logit` plus the map of Eq. 7, which the released code
    adds to every tumour's logit, and `seen_anomaly_logit` is `seen_logit` plus the map. The
    tumours' logits of a network that does so itself (`model.zept.anomaly_logit_bias`) hold the map
    already, which is not added again.

    Unspecified in the paper: the score behind the AUROC and FPR95 of its Table 1. They are those of
    OOD detection, whose score the paper takes over as Eq. 7, the one graded map that it defines:
    that is the default. Outside all organs no organ's query responds either, so it ranks voxels
    within the organs.
    """
    if stage == 1:
        return ('query_logit',)
    names = ('query_logit', 'tumour_logit', 'tumour_anomaly_logit')
    if not (_advanced(table, seen=True) and _advanced(table, seen=False)):
        return names  # the others would be of no query, or the same again
    return (*names, 'seen_logit', 'seen_anomaly_logit', 'unseen_logit')


def make_zept_forward(
    network: nn.Module,
    intensity: Mapping[str, Any],
    num_labels: int,
    table: QueryTable,
    score_names: Sequence[str],
) -> Forward:
    """Wraps ZePT as `LoadedModel.forward`.

    Args:
        network: a `ZePT` of either stage, or a `UniversalModel`.
        intensity: window and scale per channel.
        num_labels: of the store, OOD labels included; channels of the logits. Channel 0, the
            background, is zero, and a label without a query is `ABSENT`.
        table: label of each query.
        score_names: some of `zept_scores`.
    """

    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        outputs = run_zept(network, params, tiles, intensity)
        logits = label_logits(outputs.mask_logits, table.labels, num_labels)
        return logits, zept_maps(network, outputs.mask_logits, table, score_names)

    return forward


def run_zept(network: nn.Module, params: PyTree, tiles: Array, intensity: Mapping[str, Any]) -> Any:
    """Outputs for raw tiles.

    Args:
        network: see `make_zept_forward`.
        params: its parameters.
        tiles: [b, D, H, W, P], or [b, D, H, W, P + 1], the last channel being 1 inside the boxes
            that prompt it (Tab. 5).
        intensity: window and scale per channel.
    """
    num_channels = len(intensity['lower'])
    image = normalise_intensity(tiles[..., :num_channels], intensity)
    call = {}
    if tiles.shape[-1] == num_channels + 1:
        call['prompt'] = tiles[..., -1] > 0
    return network.apply({'params': params}, image, train=False, **call)


def label_logits(mask_logits: Array, labels: Sequence[int], num_labels: int) -> Array:
    """Mask logits by label.

    Args:
        mask_logits: [b, Q, D, H, W].
        labels: label of each query, `UNSEEN` for none; those beyond Q are not used.
        num_labels: channels of the result.

    Returns:
        [b, D, H, W, num_labels] float32.
    """
    queries = {label: query for query, label in enumerate(labels[: mask_logits.shape[1]])}
    empty = jnp.zeros_like(mask_logits[:, 0], jnp.float32)
    channels = [
        mask_logits[:, queries[i]].astype(jnp.float32) if i in queries else empty + ABSENT
        for i in range(1, num_labels)
    ]
    return jnp.stack([empty, *channels], axis=-1)


def zept_maps(
    network: nn.Module, mask_logits: Array, table: QueryTable, names: Sequence[str]
) -> dict[str, Array]:
    """Some of `zept_scores`.

    Args:
        network: see `make_zept_forward`.
        mask_logits: [b, Q, D, H, W] of the network.
        table: label of each query.
        names: of the scores.

    Returns:
        Name to [b, D, H, W] float32.
    """
    is_biased = isinstance(network, ZePT) and network.options.anomaly_logit_bias
    return {name: _score(mask_logits, name, table, is_biased=is_biased) for name in names}


def _score(mask_logits: Array, name: str, table: QueryTable, *, is_biased: bool) -> Array:
    organs, tumours = jnp.split(mask_logits.astype(jnp.float32), [table.num_fundamental], axis=1)
    if name == 'query_logit':
        return query_logit_score(organs)
    which, *_ = name.split('_')
    if which != 'tumour':
        tumours = tumours[:, jnp.array(_advanced(table, seen=which == 'seen'))]
    found = jnp.max(tumours, axis=1)
    if name.endswith('_anomaly_logit') and not is_biased:
        found += query_logit_score(organs)
    return found


def _advanced(table: QueryTable, *, seen: bool) -> tuple[int, ...]:
    """Advanced queries (0 to M - 1) of tumours that training labels showed, or of the others."""
    advanced = table.classes[table.num_fundamental :]
    return tuple(i for i, known in enumerate(advanced) if (known != UNSEEN) == seen)
