"""Makes the folder `bert`: a tiny BERT with random weights and what transformers makes of it.

Run with an environment that has torch and transformers:
    python tests/golden/make_bert.py
The folder is one that `save_pretrained` wrote, with a vocabulary written here. expected.npz holds
token ids and last-layer vectors of a padded batch, expected.json the ids of hard sentences by the
tokenizer that is plain Python, lower-cased and not.
"""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'bert'
SIZES = {
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 48,
    'max_position_embeddings': 40,
}
# Words, pieces and characters; not all ASCII letters are pieces, so that some words are unknown.
VOCABULARY = [
    *('[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'),
    *'abcdefghilmnoprstu0123456789.,;:!?-()[]/%+<>=\'"',
    *('中', '国', '肝', 'é', 'ü', 'ß', 'µ', '°', 'α', '–', '…'),
    *(
        'the',
        'liver',
        'kidney',
        'tumor',
        'is',
        'of',
        'right',
        'The',
        'Liver',
        'CT',
        'naive',
        'cafe',
    ),
    *('café', 'hepato', 'un', 'able', 'HU', 'mm', 'oesophagus', 'don', 'ct', 'hu'),
    *(f'##{piece}' for piece in 'abcdefghilmnoprstuvy0123456789'),
    *('##s', '##cellular', '##able', '##ing', '##é', '##國', '##国', '##ß', '##mm'),
]
SENTENCES = [
    '',
    ' ',
    'the liver is right of the kidney.',
    'The Liver IS Right',
    'hepatocellular tumors, hepatoing; (unable)',
    'café naïve CAFÉ cafe\u0301 Naïve',
    'zebra quartz the xylophone',
    'a' * 100,
    'a' * 101,
    'liver' * 30,
    '中国肝 liver中国the',
    '50-65 HU, 1.5mm; 10% (+/-3)',
    "don't \"the\" 'liver'",
    'the\tliver\nis\r\nright\u00a0of\u3000kidney',
    'the\u200bliver\u00adis\ufffdright\x07of',
    '[CLS] the [SEP] liver [ MASK ]',
    'straße STRASSE ß µ °',
    'the–liver…is',
    'ΑΒΓ α Liver',
    'üUÜ éa aé unéable',
    'tumor😀liver 😀',
    'HU hu Hu CT ct',
]


def make_weights(config) -> None:
    """Saves a BERT with weights far from their initial values, so that every one matters."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if 'LayerNorm.weight' in name else 0.3 * noise)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, config.vocab_size, (3, 17))
        lengths = np.array([17, 5, 11])
        mask = np.arange(17) < lengths[:, None]
        segments = rng.integers(0, 2, tokens.shape)
        outputs = {
            name: model(
                torch.from_numpy(tokens),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
                token_type_ids=torch.from_numpy(types),
            ).last_hidden_state.numpy()
            for name, types in (('hidden', np.zeros_like(tokens)), ('hidden_segments', segments))
        }
    model.save_pretrained(FOLDER)
    np.savez_compressed(
        FOLDER / 'expected.npz', tokens=tokens, mask=mask, segments=segments, **outputs
    )


def make_tokens() -> None:
    """Token ids with [CLS] and [SEP], in both spellings of letters."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = FOLDER / 'vocab.txt'
    expected = {}
    for name, lower in (('lower', True), ('cased', False)):
        tokenizer = BertTokenizerLegacy(str(vocabulary), do_lower_case=lower)
        words = [tokenizer.basic_tokenizer.tokenize(text) for text in SENTENCES]
        split = [
            [piece for word in sentence for piece in tokenizer.wordpiece_tokenizer.tokenize(word)]
            for sentence in words  # names of special tokens in a sentence are plain text
        ]
        expected[name] = [
            tokenizer.build_inputs_with_special_tokens(tokenizer.convert_tokens_to_ids(pieces))
            for pieces in split
        ]
    (FOLDER / 'expected.json').write_text(
        json.dumps({'sentences': SENTENCES, **expected}, ensure_ascii=True) + '\n'
    )


def main() -> None:
    """Writes the folder."""
    import transformers

    FOLDER.mkdir(exist_ok=True)
    (FOLDER / 'vocab.txt').write_text('\n'.join(dict.fromkeys(VOCABULARY)) + '\n')
    (FOLDER / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': True}) + '\n')
    make_weights(transformers.BertConfig(vocab_size=len(dict.fromkeys(VOCABULARY)), **SIZES))
    make_tokens()


if __name__ == '__main__':
    main()
