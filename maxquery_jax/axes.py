"""Logical axis names and dimension letters: the only vocabulary models share with sharding.

Letters in docstrings: B batch, D H W depth height width (z, y, x), C channels, N queries,
K classes, L = D*H*W flattened, P input channels (contrast phases), S stages.
"""

# Activations.
BATCH = 'batch'
DEPTH = 'depth'
HEIGHT = 'height'
WIDTH = 'width'
CHANNEL = 'channel'
QUERY = 'query'

# Parameters.
FEATURES_IN = 'features_in'
FEATURES_OUT = 'features_out'
NORM = 'norm'  # scale and bias vectors
CLASS = 'class'

VOLUME = (BATCH, DEPTH, HEIGHT, WIDTH, CHANNEL)  # [B, D, H, W, C]
RESPONSE = (BATCH, QUERY, DEPTH, HEIGHT, WIDTH)  # [B, N, D, H, W]
QUERIES = (BATCH, QUERY, CHANNEL)  # [B, N, C]
CONV_KERNEL = (None, None, None, FEATURES_IN, FEATURES_OUT)  # no shard ever splits its extent
DENSE_KERNEL = (FEATURES_IN, FEATURES_OUT)
