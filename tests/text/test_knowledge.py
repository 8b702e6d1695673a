"""The descriptions cover the taxonomy and have the form that their module promises."""

import pathlib
import re

import pytest

from maxquery_jax.data.taxonomy import TAXONOMY
from maxquery_jax.errors import UserError
from maxquery_jax.text import knowledge
from maxquery_jax.text.knowledge import DESCRIPTIONS, build_prompt, build_prompts

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_every_class_is_described_in_the_order_of_the_taxonomy():
    assert list(DESCRIPTIONS) == [concept.name for concept in TAXONOMY]
    assert len(set(DESCRIPTIONS.values())) == 45


@pytest.mark.parametrize('name', DESCRIPTIONS)
def test_a_description_tells_place_shape_size_and_ct(name):
    text = DESCRIPTIONS[name]
    assert 40 <= len(text.split()) <= 90
    assert text.isascii() and text.endswith('.') and '  ' not in text
    assert 'On CT' in text, 'attenuation'
    assert re.search(r'\d+(\.\d+)? (mm|cm|m)\b|meters|thirds|size', text), 'size'
    assert 'tumour' not in text and 'oesophag' not in text, 'American spelling'


def test_prompts_are_those_of_table_10():
    plain = 'A computerized tomography of a small intestinal neoplasm.'
    assert build_prompt('small_intestinal_neoplasm', 'plain') == plain
    assert build_prompt('liver_tumour', 'name') == 'liver tumor'
    described = build_prompt('liver_tumour', 'description')
    assert described == (
        f'A computerized tomography of a liver tumor. {DESCRIPTIONS["liver_tumour"]}'
    )
    assert build_prompts('name', {'left_lung': 'x', 'b': 'y'}) == {
        'left_lung': 'left lung',
        'b': 'b',
    }
    with pytest.raises(UserError, match='choose one of description, plain, name'):
        build_prompt('liver', 'poem')
    with pytest.raises(UserError, match="'appendix' has no description"):
        build_prompt('appendix', 'description')


def test_it_is_said_that_no_clinician_has_checked_them():
    for text in (knowledge.__doc__ or '', (ROOT / 'docs' / 'knowledge.md').read_text()):
        assert re.search(r'[Nn]o\s+clinician\s+has\s+checked', text)
