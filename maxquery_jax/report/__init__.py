"""Evaluation of predictions, tables, pictures and the offline report page."""
