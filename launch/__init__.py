"""The verbs: `python -m launch.VERB --help`. Flags and `absl.app` only."""
