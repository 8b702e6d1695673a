"""Experiments as data: `--config=configs/maxquery.py:pancreas`."""
