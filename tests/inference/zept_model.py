"""A tiny ZePT with random weights as a model to predict with, and scans for it."""

import jax
import nibabel as nib
import numpy as np
from threshold_model import save_scan

from maxquery_jax.inference.decision import mark_predicted
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.zept_forward import ZePTQueries, make_zept_forward, zept_scores
from maxquery_jax.losses.masks import UNSEEN
from maxquery_jax.text.embeddings import KnowledgeEmbeddings, hash_text, save_embeddings
from maxquery_jax.train.query_table import QueryTable
from tests.models.test_zept import M, N, T, build, draw

PATCH = (4, 8, 8)
SPACING = (3.0, 2.0, 2.0)
AFFINE = np.diag([*SPACING[::-1], 1.0])
LABELS = [
    {'id': 0, 'name': 'background', 'role': 'background'},
    {'id': 1, 'name': 'pancreas', 'role': 'organ'},
    {'id': 2, 'name': 'liver', 'role': 'organ'},
    {'id': 3, 'name': 'liver_tumor', 'role': 'tumour'},
    {'id': 4, 'name': 'pancreas_tumour', 'role': 'ood'},
    {'id': 5, 'name': 'fnh', 'role': 'ood'},  # no query stands for it
]
QUERIES = ('liver', 'pancreas', 'spleen', 'pancreas_tumour', 'liver_tumour')
TABLE = QueryTable(
    names=QUERIES,
    num_fundamental=N,
    classes=(2, 1, UNSEEN, UNSEEN, 3),
    labels=(2, 1, UNSEEN, 4, 3),
    parents=((), (), (), (2,)),
)
CHANNELS = ('arterial', 'venous')  # one alone would leave two answers to a network without biases
INTENSITY = {'lower': [-90.0] * 2, 'upper': [110.0] * 2, 'shift': [20.0] * 2, 'scale': [50.0] * 2}
assert len(QUERIES) == N + M


def make_network(stage=2):
    """The module and random parameters."""
    network = build(stage=stage)
    params = draw(network, np.zeros((1, *PATCH, len(CHANNELS)), np.float32))
    return network, params


def make_zept_model(stage=2, knowledge='minilm_descriptions', **fields) -> LoadedModel:
    network, params = make_network(stage)
    queries = ZePTQueries(table=TABLE, knowledge=str(knowledge), similarity='cosine')
    names = zept_scores(stage, TABLE)
    defaults = {
        'forward': make_zept_forward(network, INTENSITY, len(LABELS), TABLE, names),
        'params': jax.device_put(params),
        'patch_size': PATCH,
        'spacing_mm': SPACING,
        'channels': CHANNELS,
        'intensity': INTENSITY,
        'labels': mark_predicted(LABELS, queries.predicted_ids(stage)),
        'label_map': {str(i): i for i in range(len(LABELS))},
        'score_names': names,
        'description': f'zept (stage{stage}, step 3)',
        'params_sha256': 'cd' * 32,
        'network': network,
        'is_nested': True,
        'zept': queries,
    }
    return LoadedModel(**(defaults | fields))


def write_texts(path, names, seed=0, **fields):
    """A knowledge file with random vectors of the network's width; equal names, equal vectors."""
    vectors = [
        np.random.default_rng([seed, *name.encode()]).normal(size=T).astype(np.float32)
        for name in names
    ]
    origin = {
        'prompt': 'name',
        'pooling': 'mean',
        'encoder': 'toy',
        'architecture': 'bert',
        'encoder_files': {'w': hash_text('w')},
    }
    embeddings = KnowledgeEmbeddings(
        vectors=np.stack(vectors),
        class_names=tuple(names),
        text_hashes={name: hash_text(name) for name in names},
        **(origin | fields),
    )
    save_embeddings(path, embeddings)
    return embeddings


def outputs_of(model, tiles):
    """The network's own outputs for raw tiles, as arrays."""
    image = (np.clip(tiles.astype(np.float32), -90, 110) - 20) / 50
    return jax.device_get(jax.jit(model.network.apply)({'params': model.params}, image))


def random_hu(shape, seed=0):
    return np.random.default_rng(seed).integers(-120, 140, shape).astype(np.int16)


def save_case(folder, shape, seed=0):
    """Writes a case of noise: raw HU [D, H, W, 2] and what `predict` takes as its source."""
    hu = random_hu((*shape, len(CHANNELS)), seed)
    paths = [
        save_scan(folder / f'x_{i:04d}.nii', hu[..., i].transpose(2, 1, 0), AFFINE)
        for i in range(len(CHANNELS))
    ]
    return hu, [paths]


def read_map(path):
    """A written map [D, H, W]."""
    return np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)
