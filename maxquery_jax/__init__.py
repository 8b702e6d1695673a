"""MaxQuery and ZePT for 3D CT, in JAX and Flax."""

__version__ = '0.1.0'
