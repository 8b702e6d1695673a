"""Makes the folder `clip`: a tiny CLIP text encoder with random weights and its peer's outputs.

Run with an environment that has torch and transformers:
    python tests/golden/make_clip.py
The folder is one that `save_pretrained` wrote, with merges written here. expected.json holds ids of
hard sentences, expected.npz text embeddings of the first ones.
"""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'clip'
START, END = '<|startoftext|>', '<|endoftext|>'
MERGES = [
    *('t h', 'th e</w>', 'l i', 'v e', 'li ve', 'live r</w>', 'o f</w>', 'k i', 'd n', 'e y</w>'),
    *('ki dn', 'kidn ey</w>', 'i n', 'in g</w>', 'a a', 'aa aa', "' s</w>", '. .', '.. .</w>'),
]
SENTENCES = [
    'the liver of the kidney',
    'The LIVER, living... of 50-65 HU',
    'a',
    '',
    ' the\n\tliver\u00a0 of\u3000the ',
    "the liver's don't we'll I'VE 'something' ''s",
    'café cafe\u0301 straße ΑΒΓ',
    '中国肝 liver中 😀😀 x',
    '1234 ½ ² 3mm µm 10%',
    'aaaaaaa aaaa aaa thethe livers',
    '_under_score <b>&amp;</b> a+b',
    'the\u200bliver\u0301 e\u0301\u0301',
]
NUM_EMBEDDED = 4


def byte_characters() -> list[str]:
    """The characters that stand for bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def main() -> None:
    """Writes the folder."""
    import torch
    import transformers

    FOLDER.mkdir(exist_ok=True)
    tokens = byte_characters()
    tokens += [f'{token}</w>' for token in tokens]
    tokens += [merge.replace(' ', '') for merge in MERGES] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (FOLDER / 'vocab.json').write_text(json.dumps(vocabulary) + '\n')
    (FOLDER / 'merges.txt').write_text('\n'.join(['#version: 0.2', *MERGES]) + '\n')
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge.split(' ')) for merge in MERGES]
    )
    ids = [tokenizer(sentence)['input_ids'] for sentence in SENTENCES]
    (FOLDER / 'expected.json').write_text(json.dumps({'sentences': SENTENCES, 'ids': ids}) + '\n')

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=30,
        projection_dim=12,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            scale = 'norm' in name and name.endswith('weight')
            parameter.copy_(1 + 0.3 * noise if scale else 0.3 * noise)
        vectors = [
            model(input_ids=torch.tensor([row])).text_embeds[0].numpy()
            for row in ids[:NUM_EMBEDDED]
        ]
    model.save_pretrained(FOLDER)
    np.savez_compressed(FOLDER / 'expected.npz', vectors=np.stack(vectors))


if __name__ == '__main__':
    main()
