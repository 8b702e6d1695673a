"""Writes how every parameter of the paper-scale systems is split; see tests/parallel.

    python -m tests.golden.make_specs

Unlike the other golden files these hold our own decisions: a change of them should be seen.
"""

import pathlib

import jax
from flax.linen import LogicallyPartitioned

from configs import maxquery, zept
from maxquery_jax.parallel.mesh import MESH_AXES
from maxquery_jax.parallel.padding import stored_shape
from maxquery_jax.parallel.sharding import tree_shardings
from maxquery_jax.train.stage import make_model
from maxquery_jax.train.state import abstract_params, path_name
from maxquery_jax.train.synthetic import synthetic_manifest
from maxquery_jax.train.zept_stage import has_query_table

FOLDER = pathlib.Path(__file__).with_name('specs')
FSDP = 4  # shards; data 2
CASES = {
    'maxquery_pancreas': (maxquery, 'pancreas', 'finetune', 5),
    'zept_stage2': (zept, 'paper', 'stage2', 1),
}


def listing(module, words, stage, channels):
    """One line per parameter: path, shape, logical axes, mesh axes on 2 x 4, length if padded."""
    config = module.get_config(words)
    objective = config[stage].objective
    spacing = (1.5, 1.5, 1.5) if has_query_table(objective) else (3.0, 0.419, 0.419)
    manifest = synthetic_manifest(7, spacing, channels, is_taxonomy=has_query_table(objective))
    model = make_model(config, objective, manifest.num_classes, spacing, 'plain')
    boxed = abstract_params(model, (1, *config.data.patch_size, channels))
    mesh = jax.sharding.AbstractMesh((2, FSDP, 1), MESH_AXES)
    boxes = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, LogicallyPartitioned)
    )
    places = jax.tree.leaves(tree_shardings(boxed, mesh))
    rows = []
    for (path, box), place in zip(boxes, places, strict=True):
        shape, stored = box.value.shape, stored_shape(box.value.shape, FSDP)
        row = [path_name(path), 'x'.join(map(str, shape)), ','.join(map(str, box.names))]
        row += [','.join(map(str, place.spec))] + [f'stored:{stored[0]}'] * (stored != shape)
        rows.append(' '.join(row))
    return '\n'.join(sorted(rows)) + '\n'


if __name__ == '__main__':
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        (FOLDER / f'{name}.txt').write_text(listing(*case))
