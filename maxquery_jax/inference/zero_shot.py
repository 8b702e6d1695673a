"""Tumours found by a text in place of a query's fixed index (ZePT Eq. 11).

An advanced query stands for a text with the probability of Eq. 11, a softmax over all texts that
are known, so that a class without a text of its own does not fall to the classes asked for. The
mask of a class is the sum of the advanced queries' masks, each weighted with its probability of
standing for the class. Unspecified in the paper: how masks and probabilities become one map; this
is the rule of MaskFormer's semantic inference.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.data.taxonomy import CONCEPTS, find_concept
from maxquery_jax.errors import UserError
from maxquery_jax.files import PathLike
from maxquery_jax.inference.decision import mark_predicted
from maxquery_jax.inference.ensemble import Ensemble, combine
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.tile_program import Forward
from maxquery_jax.inference.zept_forward import label_logits, run_zept, zept_maps
from maxquery_jax.losses.alignment import alignment_logits
from maxquery_jax.models.zept import ZePT, ZePTOutputs
from maxquery_jax.text.embeddings import KnowledgeEmbeddings, load_embeddings
from maxquery_jax.typing import Array, PyTree

_MAX_LABELS = 255


def find_by_text(
    model: LoadedModel, classes: Sequence[str], knowledge: PathLike | None = None
) -> LoadedModel:
    """A model that predicts the organs as before and, of tumours, the classes asked for.

    Args:
        model: a ZePT of stage II, or an ensemble of such.
        classes: names of tumours that have a text. One that is no label yet becomes a new one.
        knowledge: file of texts beside those that the model was trained with, of the same encoder
            (launch.embed_text); where both have a name, this one counts.

    Returns:
        The model; its `labels` say which classes it predicts, its `texts` which text each has.

    Raises:
        UserError: the model has no texts, a class has none, or the file does not fit the model's.
    """
    if not classes:
        raise UserError('--knowledge has texts for --classes: name the classes to find')
    if isinstance(model, Ensemble):
        return combine([find_by_text(member, classes, knowledge) for member in model.members])
    network = model.network
    if model.zept is None or not isinstance(network, ZePT) or network.stage != 2:
        raise UserError(f'--classes needs a ZePT after stage II, {model.description} is none')
    if not network.options.qka:
        raise UserError(f'{model.description} was trained without texts (qka); drop --classes')
    texts = _join_texts(load_embeddings(model.zept.knowledge), knowledge)
    names = [_text_name(name, texts) for name in classes]
    if len(set(names)) < len(names):
        raise UserError(f'--classes names a class twice: {", ".join(classes)}')
    labels, ids = _place(model.labels, names)
    organs = [label['id'] for label in model.predicted_labels if label['role'] == 'organ']
    columns = tuple(texts.class_names.index(name) for name in names)
    return dataclasses.replace(
        model,
        forward=_make_forward(model, network, texts.vectors, columns, ids, len(labels)),
        labels=mark_predicted(labels, (*organs, *ids)),
        texts={name: texts.text_hashes[name] for name in names},
    )


def text_masks(
    outputs: ZePTOutputs, knowledge: Array, columns: Sequence[int], similarity: str = 'cosine'
) -> Array:
    """Probability of each class at each voxel, of some texts among all that compete.

    Args:
        outputs: of stage II.
        knowledge: [K, T] text embeddings.
        columns: C of the K texts.
        similarity: see `losses.alignment`.

    Returns:
        [b, C, D, H, W] float32; above 1 where several queries with one text overlap.
    """
    assert outputs.knowledge_queries is not None and outputs.temperature is not None
    queries = outputs.knowledge_queries[:, outputs.num_fundamental :]
    logits = alignment_logits(queries, knowledge, outputs.temperature, similarity=similarity)
    weights = jax.nn.softmax(logits, axis=-1)[..., jnp.array(columns)]  # [b, M, C]
    masks = jax.nn.sigmoid(outputs.tumour_logits.astype(jnp.float32))
    return jnp.einsum('bmc,bmdhw->bcdhw', weights, masks, precision=jax.lax.Precision.HIGHEST)


def _make_forward(
    model: LoadedModel,
    network: ZePT,
    vectors: np.ndarray,
    columns: Sequence[int],
    ids: Sequence[int],
    num_labels: int,
) -> Forward:
    """`LoadedModel.forward`; a class's channel is its mask less 0.5, so that above 0 is found."""
    zept = model.zept
    assert zept is not None
    knowledge = jnp.asarray(vectors)
    organs = zept.table.labels[: zept.table.num_fundamental]

    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        outputs = run_zept(network, params, tiles, model.intensity)
        found = text_masks(outputs, knowledge, columns, zept.similarity) - 0.5
        masks = jnp.concatenate([outputs.organ_logits.astype(jnp.float32), found], axis=1)
        scores = zept_maps(network, outputs.mask_logits, zept.table, model.score_names)
        return label_logits(masks, (*organs, *ids), num_labels), scores

    return forward


def _join_texts(own: KnowledgeEmbeddings, path: PathLike | None) -> KnowledgeEmbeddings:
    """The model's texts and those of a file."""
    if path is None:
        return own
    other = load_embeddings(path)
    for what in ('encoder', 'architecture', 'pooling'):
        if getattr(own, what) != getattr(other, what):
            raise UserError(
                f'{path}: {what} is {getattr(other, what)!r}, the model was trained with '
                f'{getattr(own, what)!r}; run launch.embed_text with the same'
            )
    if own.vectors.shape[1] != other.vectors.shape[1]:
        raise UserError(
            f'{path}: vectors of {other.vectors.shape[1]} values, the model was trained with '
            f'{own.vectors.shape[1]}; run launch.embed_text with the same encoder'
        )
    kept = [name for name in own.class_names if name not in other.class_names]
    return dataclasses.replace(
        other,
        vectors=np.concatenate([own.select(kept), other.vectors]),
        class_names=(*kept, *other.class_names),
        text_hashes={**own.text_hashes, **other.text_hashes},
    )


def _text_name(name: str, texts: KnowledgeEmbeddings) -> str:
    """The name of a class's text; the taxonomy's other spellings are understood."""
    concept = find_concept(name)
    found = name if name in texts.class_names else concept
    if found is None or found not in texts.class_names:
        close = difflib.get_close_matches(name, texts.class_names, 3, 0.5)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        raise UserError(
            f'--classes: {name!r} has no text; {hint}a description of it goes through '
            'launch.embed_text --texts into --knowledge=FILE'
        )
    if found in CONCEPTS and CONCEPTS[found].kind == 'organ':
        raise UserError(f'--classes: {name!r} is an organ, and organs are always predicted')
    return found


def _place(
    labels: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[list[Mapping[str, Any]], tuple[int, ...]]:
    """Labels with those that are new, and the id of each class."""
    by_name = {find_concept(label['name']) or label['name']: label for label in labels}
    every, ids = list(labels), []
    for name in names:
        label = by_name.get(name)
        if label is None:
            label = {'id': len(every), 'name': name, 'role': 'ood'}
            every.append(label)
        if label['role'] not in ('tumour', 'ood'):
            raise UserError(f'--classes: {name!r} is the {label["role"]} class of the model')
        ids.append(int(label['id']))
    if len(every) >= _MAX_LABELS:
        raise UserError(f'--classes: {len(every)} labels, at most {_MAX_LABELS - 1} fit')
    return every, tuple(ids)
