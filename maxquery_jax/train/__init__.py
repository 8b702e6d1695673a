"""Training: state, streams, step, loop, checkpoints."""
