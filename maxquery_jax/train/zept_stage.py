"""What ZePT and the Universal Model need beside a network: names of the masks, texts, objective."""

import functools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxquery_jax.baselines.universal import universal_objective
from maxquery_jax.data.store import Manifest
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.losses.zept import zept_objective
from maxquery_jax.models.build import ZEPT_STAGES
from maxquery_jax.ops.prompts import boxes_from_labels, rasterise_boxes
from maxquery_jax.text.embeddings import KnowledgeEmbeddings, load_embeddings, save_embeddings
from maxquery_jax.train.query_table import (
    QueryTable,
    build_query_table,
    query_hosts,
    query_names,
)
from maxquery_jax.train.steps import ModelInputs, ModelParams, Objective, as_stored
from maxquery_jax.typing import Batch, Config, PyTree

KNOWLEDGE_FILE = 'knowledge.safetensors'
"""Of a run: the embeddings that it was trained with, so that it can be moved and outlive them."""


def has_query_table(objective: str) -> bool:
    """Whether a model of this objective has a sigmoid mask per class of `QueryTable`."""
    return objective in (*ZEPT_STAGES, 'universal')


def model_sizes(config: Config) -> dict[str, Any]:
    """What names and texts say of a ZePT model's sizes: `models.build.build_model(zept=...)`.

    Raises:
        UserError: unknown names, or knowledge embeddings that cannot be read.
    """
    organs, tumours = query_names(config.model.zept)
    names = (*organs, *tumours)
    return {
        'num_fundamental': len(organs),
        'hosts': query_hosts(names, len(organs)),
        'texts': load_knowledge(config).select(names),
    }


def load_knowledge(config: Config) -> KnowledgeEmbeddings:
    """The knowledge embeddings of an experiment."""
    return load_embeddings(config.model.zept.knowledge)


def keep_knowledge(config: Config, folder: pathlib.Path) -> None:
    """Writes the embeddings of an experiment that uses them into its run directory."""
    if any(has_query_table(config[name].objective) for name in config.stages):
        save_embeddings(folder / KNOWLEDGE_FILE, load_knowledge(config))


def query_table(config: Config, manifest: Manifest) -> QueryTable:
    """The queries of an experiment beside the classes of its store."""
    return build_query_table(config.model.zept, manifest.labels, manifest.contains)


def is_box_prompted(cfg: Config, config: Config) -> bool:
    """Whether a stage is trained with boxes around the tumours of the label (ZePT Tab. 5)."""
    return cfg.objective == 'zept_stage2' and config.model.zept.prompt_source == 'box'


def make_box_prompt(config: Config, manifest: Manifest) -> ModelInputs:
    """`prompt=` of ZePT from the label: a relaxed box per annotated tumour class of a patch.

    All lesions of a class in a patch share one box, so that shapes are fixed; prediction takes a
    box per lesion. A patch without a tumour has an empty prompt, and attends everywhere.

    Args:
        config: the experiment.
        manifest: of the store.

    Returns:
        A function of the truth (label [B, D, H, W]) to {'prompt': [B, D, H, W] bool}.
    """
    table, margin = query_table(config, manifest), float(config.model.zept.box_margin)
    seen = tuple(c for c in table.classes[table.num_fundamental :] if c != UNSEEN)

    def box_prompt(truth: Batch) -> dict[str, Any]:
        label = truth['label']
        depth, height, width = label.shape[1:]
        boxes = boxes_from_labels(label, seen)
        return {'prompt': rasterise_boxes(boxes, (depth, height, width), margin=margin)}

    return box_prompt


def tie_unseen_queries(cfg: Config, config: Config, manifest: Manifest) -> ModelParams:
    """Keeps advanced queries equal that start equal and that no loss tells apart.

    Eq. 11 and the masks train the queries of seen tumours. The zero-initialised others get equal
    gradients but for rounding, which differs between the rows of a matrix product on some
    processors; over a training it would tell them apart by chance. They are called by their mean,
    so that they get the mean of their gradients, to the last bit.
    """
    may_differ = cfg.loss.align_unseen or config.model.zept.advanced_init != 'zeros'
    if cfg.objective != 'zept_stage2' or may_differ:
        return as_stored
    table = query_table(config, manifest)
    unseen = np.array(table.classes[table.num_fundamental :]) == UNSEEN
    rows = np.flatnonzero(unseen)
    if len(rows) < 2:
        return as_stored

    def tied(params: PyTree) -> PyTree:
        decoder = params['refinement_decoder']
        queries = decoder['queries']
        queries = queries.at[rows].set(jnp.mean(queries[rows], axis=0))
        return {**params, 'refinement_decoder': {**decoder, 'queries': queries}}

    return tied


def make_objective(cfg: Config, config: Config, manifest: Manifest) -> Objective:
    """The loss of a stage of ZePT or of the Universal Model.

    Args:
        cfg: of the stage.
        config: the experiment.
        manifest: of the store.

    Raises:
        UserError: a class of the store has no query, or a query no text.
    """
    table, loss = query_table(config, manifest), cfg.loss
    shared = {
        'parents': table.parents,
        'query_classes': table.classes,
        'dice_weight': loss.dice_weight,
        'ce_weight': loss.ce_weight,
    }
    if cfg.objective == 'universal':
        return functools.partial(universal_objective, **shared)
    return functools.partial(
        zept_objective,
        **shared,
        knowledge=jnp.asarray(load_knowledge(config).select(table.names)),
        align_unseen=loss.align_unseen,
        organs_hold_tumours=loss.organs_hold_tumours,
        similarity=config.model.zept.alignment,
        class_weight=loss.class_weight,
        alignment_weight=loss.alignment_weight,
    )
