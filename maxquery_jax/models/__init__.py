"""Linen modules with plain typed fields; only `build` reads a configuration."""
