"""What ZePT's stages minimise (ZePT Sec. 3): one scalar and its parts."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxquery_jax.losses.alignment import alignment_logits, alignment_loss
from maxquery_jax.losses.masks import (
    UNSEEN,
    class_embedding_loss,
    mask_losses,
    query_targets,
    supervised_queries,
)
from maxquery_jax.ops.targets import Parents
from maxquery_jax.typing import Array


def zept_objective(
    outputs: Any,
    label: Array,
    *,
    parents: Parents,
    query_classes: Sequence[int],
    class_mask: Array | None = None,
    knowledge: Array | None = None,
    candidates: Array | None = None,
    align_unseen: bool = False,
    organs_hold_tumours: bool = True,
    similarity: str = 'cosine',
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    class_weight: float = 1.0,
    alignment_weight: float = 1.0,
) -> tuple[Array, dict[str, Array]]:
    """Dice and cross-entropies of the masks, class embeddings, and query-knowledge alignment.

    Unspecified in the paper: which cross-entropy stage I adds to the Dice loss. Sec. 3.1 names the
    one of the class embeddings, the code that the paper builds on has the one of the voxels; both
    are here, with a weight each. Sec. 3.2 sums the Dice loss and the alignment in stage II.

    Args:
        outputs: of `models.zept.ZePT`; alignment is computed where it has `knowledge_queries`.
        label: [B, D, H, W] integer class, 0 to K - 1.
        parents: of the K classes, see `ops.targets.class_targets`.
        query_classes: class of each query, fundamental ones first, `masks.UNSEEN` for none; those
            beyond the outputs' queries (stage I has no advanced ones) are not used.
        class_mask: [B, K] annotated classes; all by default.
        knowledge: [N + M, T] text embeddings, one per query; needed for the alignment.
        candidates: [N + M] texts that compete, see `alignment_loss`.
        align_unseen: whether queries are aligned with their texts in every sample, also those whose
            class it does not annotate or no training label shows (the released code; a text needs
            no annotation). By default only annotated classes are.
        organs_hold_tumours: whether a fundamental query's truth holds the tumours of its organ.
        similarity: see `alignment_logits`.
        dice_weight: of the Dice loss.
        ce_weight: of the masks' binary cross-entropy.
        class_weight: of the class embeddings' cross-entropy.
        alignment_weight: of the alignment.

    Returns:
        The loss, and float32 scalars: 'loss', 'dice', 'ce' (of the masks), 'class' and, with
        alignment, 'alignment'.

    Raises:
        ValueError: if outputs that can be aligned come without `knowledge`.
    """
    num_queries = outputs.mask_logits.shape[1]
    classes = tuple(query_classes)[:num_queries]
    if class_mask is None:
        class_mask = jnp.ones((label.shape[0], len(parents)), bool)
    counted = supervised_queries(class_mask, classes)
    num_organs = outputs.class_logits.shape[1]
    if not organs_hold_tumours:
        tumours = set(query_classes[num_organs:])
        parents = [() if k in tumours else organs for k, organs in enumerate(parents)]
    dice, bce = jnp.zeros(()), jnp.zeros(())
    for chosen in (range(num_organs), range(num_organs, num_queries)):
        seen = [query for query in chosen if classes[query] != UNSEEN]  # others count nowhere
        if seen:
            index = np.asarray(seen)
            targets = query_targets(label, parents, [classes[query] for query in seen])
            of_set = mask_losses(outputs.mask_logits[:, index], targets, counted[:, index])
            dice, bce = dice + of_set[0], bce + of_set[1]
    classification = class_embedding_loss(outputs.class_logits, counted[:, :num_organs])
    loss = dice_weight * dice + ce_weight * bce + class_weight * classification
    metrics = {'dice': dice, 'ce': bce, 'class': classification}
    if outputs.knowledge_queries is not None:
        if knowledge is None:
            raise ValueError('outputs with knowledge_queries need the knowledge embeddings')
        logits = alignment_logits(
            outputs.knowledge_queries, knowledge, outputs.temperature, similarity=similarity
        )
        alignment = alignment_loss(logits, None if align_unseen else counted, candidates)
        loss += alignment_weight * alignment
        metrics['alignment'] = alignment
    return loss, {'loss': loss, **metrics}
