"""Flags of predict for ZePT: tumours by their texts, boxes as prompts, clean-up of its masks."""

from typing import Any

from absl import flags

_CLASSES = flags.DEFINE_list(
    'classes',
    None,
    'ZePT: tumours to find by their texts, such as colon_tumour,lung_tumour, in place of all that '
    'its queries stand for. Organs are predicted as always.',
)
_KNOWLEDGE = flags.DEFINE_string(
    'knowledge',
    None,
    "Further texts for --classes: a file of launch.embed_text --texts, by the model's encoder. A "
    'class of it that is no label of the model becomes a new one.',
)
_BOXES = flags.DEFINE_string(
    'boxes',
    None,
    'ZePT: boxes as prompts in place of its own. A JSON file {"CASE": [[i0, j0, k0, i1, j1, k1], '
    "...], ...} of half-open voxel indices along the axes of the case's file; or, with --split, "
    'truth: the boxes of the tumours in its labels.',
)
_POSTPROCESS = flags.DEFINE_string(
    'postprocess',
    None,
    "zept: clean the mask by the rules of ZePT's code (largest components per organ, smallest "
    'sizes of some tumours).',
)


def options() -> dict[str, Any]:
    """The flags' values, as `inference.predict.predict` takes them."""
    return {
        'classes': _CLASSES.value,
        'knowledge': _KNOWLEDGE.value,
        'boxes': _BOXES.value,
        'postprocess': _POSTPROCESS.value,
    }
