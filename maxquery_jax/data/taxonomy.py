"""The organs and tumours of ZePT Table 8, and the label table that stores of many data sets share.

Table 8 counts 25 organs (1 to 25) and 20 tumours and diseases (26 to 45); two of them, kidney and
liver tumour, are seen in training. The names of the organs are those of the phantom
(docs/phantom.md). `postcava` is the inferior vena cava, `intestine` the small bowel.

`--taxonomy=zept` gives every store the same table: background, the 25 organs, the seen tumours,
then the unseen ones as `ood`. So stores of different data sets can be mixed; what each of them
annotates is in its manifest.

Unspecified in the paper: the organ of each tumour. Here it is the organ in its name (both kidneys,
lungs, adrenals where there are two). The tumours of the Decathlon's hepatic vessel task lie in the
liver, next to the vessels; as in the released code they go with `hepatic_vessel`, of which they
are no part.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from maxquery_jax.data.labels import (
    LabelTable,
    RoleFlags,
    complete_table,
    list_sources,
    number_classes,
)
from maxquery_jax.data.raw import describe_labels
from maxquery_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """One row of ZePT Table 8.

    Attributes:
        name: of the class in a store.
        kind: 'organ' or 'tumour'.
        organ: of a tumour, the organ it grows in; for a paired organ both sides joined by `+`.
        seen: whether ZePT trains on it; True for every organ.
    """

    name: str
    kind: str
    organ: str | None = None
    seen: bool = True


_ORGANS = (
    'spleen',
    'right_kidney',
    'left_kidney',
    'gall_bladder',
    'esophagus',
    'liver',
    'stomach',
    'aorta',
    'postcava',
    'portal_vein_and_splenic_vein',
    'pancreas',
    'right_adrenal_gland',
    'left_adrenal_gland',
    'duodenum',
    'hepatic_vessel',
    'right_lung',
    'left_lung',
    'colon',
    'intestine',
    'rectum',
    'bladder',
    'prostate',
    'left_head_of_femur',
    'right_head_of_femur',
    'celiac_trunk',
)
_KIDNEYS = 'right_kidney+left_kidney'
_ADRENALS = 'right_adrenal_gland+left_adrenal_gland'
_LUNGS = 'right_lung+left_lung'
_TUMOURS = {
    'spleen_tumour': 'spleen',
    'kidney_tumour': _KIDNEYS,
    'kidney_cyst': _KIDNEYS,
    'gall_bladder_tumour': 'gall_bladder',
    'esophagus_tumour': 'esophagus',
    'liver_tumour': 'liver',
    'stomach_tumour': 'stomach',
    'aortic_tumour': 'aorta',
    'postcava_tumour_thrombus': 'postcava',
    'portal_vein_tumour_thrombus': 'portal_vein_and_splenic_vein',
    'pancreas_tumour': 'pancreas',
    'adrenal_tumour': _ADRENALS,
    'adrenal_cyst': _ADRENALS,
    'duodenal_tumour': 'duodenum',
    'hepatic_vessel_tumour': 'hepatic_vessel',
    'lung_tumour': _LUNGS,
    'lung_cyst': _LUNGS,
    'colon_tumour': 'colon',
    'small_intestinal_neoplasm': 'intestine',
    'rectal_tumour': 'rectum',
}
_SEEN = ('kidney_tumour', 'liver_tumour')
_AROUND = {'hepatic_vessel_tumour': ('liver',)}  # it grows beside the vessels

TAXONOMY: tuple[Concept, ...] = tuple(
    [Concept(name=name, kind='organ') for name in _ORGANS]
    + [
        Concept(name=name, kind='tumour', organ=organ, seen=name in _SEEN)
        for name, organ in _TUMOURS.items()
    ]
)
CONCEPTS: Mapping[str, Concept] = {concept.name: concept for concept in TAXONOMY}
TAXONOMIES = ('zept',)

# Other common names of the same thing, in the form that `find_concept` compares.
_ALIASES = {
    'kidney_right': 'right_kidney',
    'kidney_left': 'left_kidney',
    'gallbladder': 'gall_bladder',
    'oesophagus': 'esophagus',
    'inferior_vena_cava': 'postcava',
    'adrenal_gland_right': 'right_adrenal_gland',
    'adrenal_gland_left': 'left_adrenal_gland',
    'right_adrenal': 'right_adrenal_gland',
    'left_adrenal': 'left_adrenal_gland',
    'lung_right': 'right_lung',
    'lung_left': 'left_lung',
    'small_bowel': 'intestine',
    'small_intestine': 'intestine',
    'urinary_bladder': 'bladder',
    'prostate/uterus': 'prostate',
    'hepatic_tumour': 'liver_tumour',
    'pancreatic_tumour': 'pancreas_tumour',
    'coeliac_trunk': 'celiac_trunk',
}


def find_concept(name: str) -> str | None:
    """The taxonomy's name for a label, if its own name says which it is.

    Upper case, spaces and hyphens, American spelling and a few common names are understood.
    """
    key = re.sub(r'[\s_-]+', '_', name.strip().lower())
    key = re.sub(r'tumor(?!u)', 'tumour', key)
    key = _ALIASES.get(key, key)
    return key if key in CONCEPTS else None


def hosts_of(name: str) -> tuple[str, ...]:
    """Organs that a tumour's label name says it lies in; none for other names."""
    concept = CONCEPTS.get(find_concept(name) or '')
    if concept is None or concept.organ is None:
        return ()
    return (*concept.organ.split('+'), *_AROUND.get(concept.name, ()))


def role_of(name: str) -> str:
    """Role of a concept in a store: 'organ', 'tumour' if seen, else 'ood'."""
    concept = CONCEPTS[name]
    if concept.kind == 'organ':
        return 'organ'
    return 'tumour' if concept.seen else 'ood'


def build_taxonomy_table(
    raw_labels: Mapping[int, str],
    flags: RoleFlags | None = None,
    *,
    to_taxonomy: Mapping[str, str | None] | None = None,
    left_right: Mapping[int, tuple[str, str]] | None = None,
    contains: Mapping[str, str] | None = None,
    masks: Mapping[str, int] | None = None,
) -> LabelTable:
    """The fixed label table, with a data set's labels mapped into it.

    Args:
        raw_labels: raw id to name; 0 is background.
        flags: `ignore` lists labels to leave out, `*` all that the taxonomy does not know;
            `tumour` and `ood` list concepts to be learnt or unknown, against ZePT's choice (such a
            store mixes only with others made so).
        to_taxonomy: label to concept, None for what the taxonomy leaves out; labels that are not
            mentioned go by their names.
        left_right: as in `labels.build_label_table`.
        contains: as there.
        masks: as there.

    Raises:
        UserError: a label that cannot be placed, or flags that do not fit.
    """
    flags = flags or RoleFlags()
    sources = list_sources(raw_labels, left_right or {})
    roles = _roles(flags)
    mapping = _place(sources, to_taxonomy or {}, flags.ignore)
    members: dict[str, list[str]] = {concept.name: [] for concept in TAXONOMY}
    left_out = []
    for name in sources:
        concept = mapping[name]
        (left_out if concept is None else members[concept]).append(name)
    classes: dict[str, tuple[str, list[str]]] = {
        name: (roles[name], members[name]) for name in CONCEPTS
    }
    table = number_classes(
        raw_labels, sources, {**classes, '': ('ignore', left_out)}, keep_order=True
    )
    return complete_table(table, raw_labels, left_right or {}, contains or {}, masks)


def _roles(flags: RoleFlags) -> dict[str, str]:
    if flags.organ:
        raise UserError(
            f'--organ={",".join(flags.organ)}: --taxonomy has fixed classes; drop one of the two'
        )
    roles = {name: role_of(name) for name in CONCEPTS}
    for role, names in (('tumour', flags.tumour), ('ood', flags.ood)):
        for name in names:
            if name not in CONCEPTS or CONCEPTS[name].kind != 'tumour':
                raise UserError(
                    f'--{role}={name}: with --taxonomy name a tumour of it; {_suggest(name)}'
                )
            if name in flags.tumour and name in flags.ood:
                raise UserError(f'{name!r} is given to --tumour and to --ood')
            roles[name] = role
    return roles


def _place(
    names: Iterable[str], stated: Mapping[str, str | None], ignore: Collection[str]
) -> dict[str, str | None]:
    """The concept of every label; None for what is left out."""
    names = list(names)
    for name in ignore:
        if name != '*' and name not in names:
            raise UserError(
                f'--ignore: the data set has no label {name!r}; {describe_labels(names)}'
            )
    mapping: dict[str, str | None] = {}
    for name in names:
        concept = stated[name] if name in stated else find_concept(name)
        if concept is not None and concept not in CONCEPTS:
            raise UserError(f'to_taxonomy: {name!r} maps to {concept!r}; {_suggest(concept)}')
        if concept is None and name not in stated and not {'*', name} & set(ignore):
            raise UserError(
                f'--taxonomy=zept: label {name!r} is not in the taxonomy; leave it out with '
                f'--ignore={name} (--ignore=* for all such), or place it with to_taxonomy in a '
                f'--spec file; {_suggest(name)}'
            )
        mapping[name] = None if name in ignore else concept
    return mapping


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), CONCEPTS, 3, 0.5)
    return (
        f'did you mean {" or ".join(close)}?'
        if close
        else 'names are those of ZePT Table 8, such as liver'
    )
