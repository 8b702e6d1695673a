"""Turns texts about classes into the knowledge embeddings that ZePT aligns its queries with.

    python -m launch.embed_text --encoder=DIR --out=F.safetensors
    python -m launch.embed_text --encoder=DIR --out=F.safetensors --prompt=plain --pooling=mean
    python -m launch.embed_text --encoder=DIR --out=F.safetensors --texts=FILE.json

DIR is a BERT in the layout of Hugging Face (config.json, model.safetensors, vocab.txt), for which
tensorflow-text has to be there: pip install 'maxquery_jax[text]'. ZePT's is ClinicalBERT. The text
half of a CLIP works too (vocab.json, merges.txt). Without --texts the 45 classes of ZePT Table 8
are described by the package's own texts, which no clinician has checked (docs/knowledge.md).
FILE.json maps class names to texts.
"""

import sys

from absl import flags

from launch import _cli
from maxquery_jax.errors import UserError
from maxquery_jax.text import encoder, knowledge
from maxquery_jax.text.embeddings import check_suffix, save_embeddings

_ENCODER = flags.DEFINE_string('encoder', None, 'Folder of the text encoder.')
_OUT = flags.DEFINE_string('out', None, 'File to write, F.safetensors.')
_PROMPT = flags.DEFINE_enum(
    'prompt',
    knowledge.PROMPTS[0],
    knowledge.PROMPTS,
    'What is encoded: "A computerized tomography of a NAME." with the description after it, '
    'without, or the bare name.',
)
_POOLING = flags.DEFINE_string(
    'pooling', None, "How a text's tokens become one vector: cls (default) or mean; of a CLIP, end."
)
_TEXTS = flags.DEFINE_string('texts', None, 'JSON file {"class name": "description", ...}.')
_MAX_LENGTH = flags.DEFINE_integer(
    'max_length',
    None,
    'Tokens of a text at most, by default 150 or as many as the encoder reads; the rest is cut.',
    lower_bound=3,
)


def main() -> None:
    """Runs the verb."""
    folder, out = _ENCODER.value, _OUT.value
    if not folder or not out:
        raise UserError('name the encoder and the file with --encoder=DIR --out=F.safetensors')
    check_suffix(out)
    descriptions = knowledge.DESCRIPTIONS
    if _TEXTS.value:
        descriptions = encoder.read_descriptions(_TEXTS.value)
    prompts = knowledge.build_prompts(_PROMPT.value, descriptions)
    embeddings = encoder.embed(
        encoder.load_encoder(folder),
        prompts,
        prompt=_PROMPT.value,
        pooling=_POOLING.value,
        max_length=_MAX_LENGTH.value,
    )
    if embeddings.cut:
        print(
            f'warning: too long, lost their ends: {", ".join(embeddings.cut)}; '
            'shorten them or raise --max_length',
            file=sys.stderr,
        )
    save_embeddings(out, embeddings)
    count, size = embeddings.vectors.shape
    print(f'{out}: {count} classes x {size}, {embeddings.encoder}, {embeddings.pooling}')


if __name__ == '__main__':
    _cli.run(main)
