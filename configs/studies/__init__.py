"""Studies: variants times seeds, and the table they fill."""
