"""Pure array maths, one equation each; no Flax, no configuration."""
