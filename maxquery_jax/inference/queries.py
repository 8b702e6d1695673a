"""What the queries of a trained MaxQuery do with a case: assignments, responses, their parts.

Everything is on the grid of the patch store, the voxels that the network sees; the store also has
the CT and the truth there, so that nothing is resampled. Tiles are merged as in prediction: each
map is the Gaussian-weighted mean over the tiles that cover a voxel. The queries of two tiles are
not the same, since a tile's image updates them; query i stands for the same learned start.

Maps are kept in half precision, as anomaly maps are. Memory is that of a prediction with N more
scores: one slab as deep as a patch, never queries x volume.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.augment.intensity import normalise_intensity
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError
from maxquery_jax.inference.model import LoadedModel
from maxquery_jax.inference.predict import default_step_size
from maxquery_jax.inference.sliding_window import TilePlan, plan_tiles, predict_slabs
from maxquery_jax.inference.tile_program import Forward, TileProgram
from maxquery_jax.models.kmax_decoder import PixelResponse
from maxquery_jax.models.maxquery import MaxQuery, average_pool, resize_to
from maxquery_jax.ops.anomaly import category_logit_score
from maxquery_jax.ops.assignment import assignment
from maxquery_jax.typing import Array, PyTree

QUANTITIES = ('assignment', 'response')
PARTS = ('max_response', 'length', 'cosine', 'category_logit')
"""Maps of one value per voxel.

'max_response' is max_N R; with 'instance' pixels it is |P| |C_n| cos(P, C_n) of the query n that
it belongs to. 'length' is |P|, 'cosine' that cosine, 'category_logit' MaxLogit's -max_K Z.
"""

_CHANNELS_AT_ONCE = 16  # of P, while its length is summed up: P itself is never whole


@flax.struct.dataclass
class TileResponse:
    """What the network says of a batch of tiles, at the stride of P.

    Attributes:
        seg_logits: [b, D, H, W, K] Z at the tiles' resolution.
        response: [b, N, d, h, w] R.
        length: [b, d, h, w] |P|, before the division that `pixel_norm='l2'` adds.
        center_length: [b, N] |C|.
    """

    seg_logits: Array
    response: Array
    length: Array
    center_length: Array


@dataclasses.dataclass(frozen=True)
class QuerySlab:
    """A run of slices.

    Attributes:
        start: first slice.
        queries: [N, d, H, W] float16, mean M or R over the tiles.
        parts: name in `PARTS` to [d, H, W] float16.
        predicted: [d, H, W] uint8 class.
    """

    start: int
    queries: np.ndarray
    parts: dict[str, np.ndarray]
    predicted: np.ndarray


def respond(network: MaxQuery, params: PyTree, image: Array) -> TileResponse:
    """Runs the network and takes R = C P^T apart (MaxQuery Eq. 3).

    Args:
        network: the model.
        params: its parameters.
        image: [b, D, H, W, P] normalised.
    """

    def is_wanted(module: Any, method: str) -> bool:
        return method == '__call__' and module.path in (('backbone',), ('cluster_head',))

    outputs, state = network.apply(
        {'params': params},
        image,
        train=False,
        capture_intermediates=is_wanted,
        mutable=['intermediates'],
    )
    seen: Any = state['intermediates']
    features = seen['backbone']['__call__'][0]
    centers, _ = seen['cluster_head']['__call__'][0]
    pixels = average_pool(features.full, network.pixel_stride)
    return TileResponse(
        seg_logits=outputs.seg_logits.astype(jnp.float32),
        response=outputs.final.query_response,
        length=_pixel_length(network, params['pixel_response'], pixels),
        center_length=jnp.linalg.norm(centers.astype(jnp.float32), axis=-1),
    )


def _pixel_length(network: MaxQuery, params: PyTree, pixels: Array) -> Array:
    """|P| [b, d, h, w]. The response to the unit vectors, as if they were centres, is P itself."""
    width = params['norm_scale'].shape[0]
    rows = math.gcd(width, _CHANNELS_AT_ONCE)
    head = PixelResponse(norm='instance', dtype=network.decoder.dtype)

    def add(squared: Array, units: Array) -> tuple[Array, None]:
        units = jnp.broadcast_to(units[None], (len(pixels), rows, width))
        part = head.apply({'params': params}, pixels, units)
        assert isinstance(part, jax.Array)
        return squared + jnp.sum(part**2, axis=1), None

    start = jnp.zeros(pixels.shape[:-1], jnp.float32)
    squared, _ = jax.lax.scan(add, start, jnp.eye(width).reshape(-1, rows, width))
    return jnp.sqrt(squared)


def voxel_parts(tile: TileResponse, pixel_norm: str) -> dict[str, Array]:
    """The maps named in `PARTS` without 'category_logit', each [b, d, h, w].

    Args:
        tile: of `respond`.
        pixel_norm: 'instance' or 'l2', see `models.kmax_decoder.PixelResponse`.
    """
    winner = jnp.argmax(tile.response, axis=1)  # [b, d, h, w]
    largest = jnp.max(tile.response, axis=1)
    center = jax.vmap(lambda lengths, index: lengths[index])(tile.center_length, winner)
    lengths = center if pixel_norm == 'l2' else center * tile.length
    cosine = largest / jnp.maximum(lengths, 1e-6)
    return {'max_response': largest, 'length': tile.length, 'cosine': cosine}


def make_query_forward(network: MaxQuery, intensity: Any, quantity: str) -> Forward:
    """The network as the sliding window calls it, with N + 4 maps in place of the scores.

    Args:
        network: the model.
        intensity: window and scale per channel.
        quantity: 'assignment' M, or 'response' R.
    """

    def forward(params: PyTree, tiles: Array) -> tuple[Array, dict[str, Array]]:
        tile = respond(network, params, normalise_intensity(tiles, intensity))
        maps = tile.response if quantity == 'response' else assignment(tile.response)
        named = {str(i): maps[:, i] for i in range(maps.shape[1])}
        named |= voxel_parts(tile, network.decoder.pixel_norm)
        stacked = jnp.stack(list(named.values()), axis=-1)
        stacked = resize_to(stacked, tile.seg_logits.shape[1:4])
        scores = {name: stacked[..., i] for i, name in enumerate(named)}
        scores['category_logit'] = category_logit_score(tile.seg_logits)
        return tile.seg_logits, scores

    return forward


class QueryReader:
    """Reads query maps of the cases of a store."""

    def __init__(
        self, model: LoadedModel, store: PatchStore | None = None, *, step_size: float | None = None
    ):
        """Checks the model; nothing is compiled yet.

        Args:
            model: a run of a MaxQuery stage.
            store: of the cases; None opens the one the model was trained on.
            step_size: distance between tiles as a fraction of the patch; None as `predict`.

        Raises:
            UserError: the model has no queries, or the store is gone or does not fit the model.
        """
        if not isinstance(model.network, MaxQuery) or not model.query_groups:
            raise UserError(
                f'the model {model.description} has no queries: give one run whose last stage has '
                "the objective 'maxquery'"
            )
        if store is None:
            if not model.store:
                raise UserError(
                    f'the model {model.description} names no store; train it from a store'
                )
            store = PatchStore(model.store)
        manifest = store.manifest
        known = [(label['id'], label['name']) for label in manifest.known_labels]
        if (manifest.channels, manifest.spacing_mm, known) != (
            model.channels,
            model.spacing_mm,
            [(label['id'], label['name']) for label in model.known_labels],
        ):
            raise UserError(
                f'store {store.location} has other channels, classes or spacing than the model '
                f'{model.description} was trained with; compare runs of one store'
            )
        self.model = model
        self.store = store
        self._network = model.network
        self._step_size = default_step_size() if step_size is None else step_size
        self._programs: dict[str, TileProgram] = {}

    @property
    def num_queries(self) -> int:
        """N."""
        return self._network.decoder.num_queries

    def maps(
        self, case_id: str, start: int, stop: int, *, quantity: str = 'assignment'
    ) -> QuerySlab:
        """Query maps of some slices; only tiles that touch them are computed.

        Args:
            case_id: of the store.
            start: first slice.
            stop: end of the slices, exclusive.
            quantity: 'assignment' M, which sums to one over the queries, or 'response' R.

        Raises:
            ValueError: the slices lie outside the case.
        """
        depth = self.store.shape(case_id)[0]
        if not 0 <= start < stop <= depth:
            raise ValueError(f'slices {start} to {stop} are not in {case_id}, which has {depth}')
        pieces = [
            _cut(slab, start, stop)
            for slab in self._slabs(case_id, start, stop, quantity)
            if slab.start < stop and slab.start + len(slab.predicted) > start
        ]
        return QuerySlab(
            start,
            np.concatenate([piece.queries for piece in pieces], axis=1),
            {name: np.concatenate([piece.parts[name] for piece in pieces]) for name in PARTS},
            np.concatenate([piece.predicted for piece in pieces]),
        )

    def slabs(self, case_id: str, *, quantity: str = 'assignment') -> Iterator[QuerySlab]:
        """A whole case in slabs that cover every slice once, in order."""
        return self._slabs(case_id, 0, self.store.shape(case_id)[0], quantity)

    def _slabs(self, case_id: str, start: int, stop: int, quantity: str) -> Iterator[QuerySlab]:
        """Slabs of the tiles that touch the slices; those outside of them are incomplete."""
        model, names = self.model, [*map(str, range(self.num_queries)), *PARTS]
        if quantity not in self._programs:
            forward = make_query_forward(self._network, model.intensity, quantity)
            self._programs[quantity] = TileProgram(forward, names, model.patch_size)
        volume = self.store.read_image(case_id)
        plan = plan_tiles(volume.shape[:3], model.patch_size, self._step_size)
        slabs = predict_slabs(
            volume,
            functools.partial(self._programs[quantity], model.params),
            _keep_rows(plan, start, stop),
            num_classes=model.num_classes,
            score_names=names,
            lower=model.intensity['lower'],
        )
        for slab in slabs:
            yield QuerySlab(
                slab.start,
                np.stack([slab.scores[name] for name in names[: self.num_queries]]),
                {name: slab.scores[name] for name in PARTS},
                slab.label,
            )


def _keep_rows(plan: TilePlan, start: int, stop: int) -> TilePlan:
    """The plan without the tiles that do not touch slices [start, stop)."""
    first = start + plan.margin[0]
    last = stop + plan.margin[0]
    depth = plan.patch_size[0]
    rows = tuple(z for z in plan.starts[0] if z < last and z + depth > first)
    return dataclasses.replace(plan, starts=(rows, *plan.starts[1:]))


def _cut(slab: QuerySlab, start: int, stop: int) -> QuerySlab:
    """The part of a slab that lies in [start, stop)."""
    inside = slice(max(start - slab.start, 0), stop - slab.start)
    return QuerySlab(
        max(start, slab.start),
        slab.queries[:, inside],
        {name: values[inside] for name, values in slab.parts.items()},
        slab.predicted[inside],
    )
