"""docs/run_on.md names flags, config fields and messages that exist."""

import ast
import pathlib
import re

import pytest

from configs import maxquery

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'docs/run_on.md').read_text()
JOINED = TEXT.replace('\\\n', ' ')
VERBS = re.findall(r'-m launch\.(\w+)([^\n`]*)', JOINED)


def _strings(folder):
    """Every text of the source, with a gap where a value goes."""
    texts = []
    for file in sorted((ROOT / folder).rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else '\0' for p in node.values]
                texts.append(''.join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def _flags(verb, seen=()):
    """Flags of a verb: its own and those of the groups it takes in."""
    source = (ROOT / f'launch/{verb}.py').read_text()
    found = set(re.findall(r"(?:DEFINE_\w+)\(\s*'(\w+)'", source))
    for line in re.findall(r'from launch import (.*)', source):
        for group in (name.strip() for name in line.split(',')):
            if group not in seen:
                found |= _flags(group, (*seen, group))
    return found


@pytest.mark.parametrize('verb', sorted({verb for verb, _ in VERBS}))
def test_flags_exist(verb):
    used = {
        name
        for found, arguments in VERBS
        if found == verb
        for name in re.findall(r'--(\w+)(?=[=\s]|$)', arguments.split('#')[0])
    }
    assert used and used <= _flags(verb)


def test_config_fields_exist():
    config = maxquery.get_config('demo')
    fields = set(re.findall(r'--config\.([\w.]+\w)', TEXT))
    assert {'mesh.data', 'mesh.fsdp', 'mesh.spatial'} <= fields
    for field in fields:
        node = config
        for name in field.split('.'):
            assert name in node, field
            node = node[name]


def test_quoted_lines_are_what_the_program_says():
    table = TEXT.split('## When it says')[1]
    lines = re.findall(r'^\| `(.*?)` \|', table, re.MULTILINE)
    texts = _strings('maxquery_jax')
    assert len(lines) > 10
    for line in lines:
        assert any(line in text for text in texts), line


def test_the_readers_next_file_exists():
    for path in ('containers/Dockerfile', 'Makefile'):
        assert path in TEXT and (ROOT / path).exists()
