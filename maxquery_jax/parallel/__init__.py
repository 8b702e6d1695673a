"""Device mesh, logical-axis rules and placement of state and batches."""
