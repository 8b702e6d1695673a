"""Which class each of ZePT's queries stands for, in a store's own numbering (ZePT Table 8)."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from maxquery_jax.data.taxonomy import CONCEPTS, TAXONOMY, find_concept
from maxquery_jax.errors import UserError
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.typing import Config

# Grows beside the vessels, in the liver (data.taxonomy): its voxels are no part of its organ.
_OUTSIDE = ('hepatic_vessel_tumour',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryTable:
    """The queries of a ZePT model beside the labels of a store.

    Attributes:
        names: taxonomy name of each query, the N fundamental (organs) before the M advanced.
        num_fundamental: N.
        classes: known class of each query (0 to K - 1), `losses.masks.UNSEEN` for none.
        labels: store id of each query's label, OOD labels included; `UNSEEN` for none.
        parents: of the K known classes, see `ops.targets.class_targets`.
    """

    names: tuple[str, ...]
    num_fundamental: int
    classes: tuple[int, ...]
    labels: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]


def query_names(cfg: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the fundamental and of the advanced queries that `config.model.zept` asks for.

    Raises:
        UserError: a name that the taxonomy does not have, of the wrong kind, or given twice.
    """
    chosen = []
    for field, kind in (('organs', 'organ'), ('tumours', 'tumour')):
        names = tuple(cfg[field]) or tuple(c.name for c in TAXONOMY if c.kind == kind)
        for name in names:
            if name not in CONCEPTS or CONCEPTS[name].kind != kind:
                known = [c.name for c in TAXONOMY if c.kind == kind]
                close = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean {close[0]!r}?' if close else f'it has {", ".join(known)}'
                raise UserError(
                    f'model.zept.{field}: {name!r} is no {kind} of ZePT Table 8; {hint}'
                )
        if len(set(names)) < len(names):
            raise UserError(f'model.zept.{field} names a class twice: {names}')
        chosen.append(names)
    return chosen[0], chosen[1]


def query_hosts(names: Sequence[str], num_fundamental: int) -> tuple[tuple[int, ...], ...]:
    """For each advanced query the fundamental queries of the organ that its tumour grows in."""
    organs = {name: i for i, name in enumerate(names[:num_fundamental])}
    return tuple(
        tuple(organs[organ] for organ in _organs_of(name) if organ in organs)
        for name in names[num_fundamental:]
    )


def build_query_table(
    cfg: Config, labels: Sequence[Mapping[str, Any]], contains: Mapping[str, str]
) -> QueryTable:
    """Finds each query's class among a store's labels; names are compared by the taxonomy.

    Args:
        cfg: `config.model.zept`.
        labels: records `{id, name, role}` of a manifest.
        contains: of the manifest; tumours that it says nothing about lie in the organ of the
            taxonomy.

    Raises:
        UserError: a known class has no query, so that nothing could ever predict it.
    """
    organs, tumours = query_names(cfg)
    names = (*organs, *tumours)
    by_concept = {find_concept(label['name']): label for label in labels}
    by_concept.pop(None, None)
    known = [label for label in labels if label['role'] != 'ood']
    for label in known[1:]:
        if find_concept(label['name']) not in names:
            raise UserError(
                f'class {label["name"]!r} of the store has no query; prepare the store with '
                '--taxonomy=zept (--ignore leaves a label out), or name it in model.zept.organs '
                'or model.zept.tumours'
            )
    found = [by_concept.get(name) for name in names]
    return QueryTable(
        names=names,
        num_fundamental=len(organs),
        classes=tuple(_known_id(label) for label in found),
        labels=tuple(UNSEEN if label is None else label['id'] for label in found),
        parents=_parents(known, by_concept, contains),
    )


def _known_id(label: Mapping[str, Any] | None) -> int:
    return UNSEEN if label is None or label['role'] == 'ood' else label['id']


def _parents(
    known: Sequence[Mapping[str, Any]],
    by_concept: Mapping[str | None, Mapping[str, Any]],
    contains: Mapping[str, str],
) -> tuple[tuple[int, ...], ...]:
    ids = {label['name']: label['id'] for label in known}
    parents = []
    for label in known:
        if label['name'] in contains:
            organs = tuple(ids[organ] for organ in contains[label['name']].split('+'))
        else:
            concept = find_concept(label['name']) or ''
            found = [by_concept.get(organ) for organ in _organs_of(concept)]
            organs = tuple(
                organ['id'] for organ in found if organ is not None and organ['role'] == 'organ'
            )
            organs = () if concept in _OUTSIDE else organs
        parents.append(organs)
    return tuple(parents)


def _organs_of(name: str) -> tuple[str, ...]:
    concept = CONCEPTS.get(name)
    return tuple(concept.organ.split('+')) if concept and concept.organ else ()
