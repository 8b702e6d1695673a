"""Readers of data set layouts, and the built-in cohort."""
