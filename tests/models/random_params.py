"""Random parameters without compiling `init`; compiling is nearly all of a test's time."""

import jax
import numpy as np
from flax.linen import meta


def draw_params(abstract_params, seed):
    """Values for the shapes of `jax.eval_shape(init)`; norms near their start, no bias zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(0, 1, leaf.shape)
        if len(leaf.shape) == 2:
            values /= leaf.shape[0] ** 0.5
        else:
            values = 0.2 * values + ('scale' in path[-1].key)
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(abstract_params))
