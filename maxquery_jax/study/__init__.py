"""Variants times seeds of an experiment, and the tables they fill."""
