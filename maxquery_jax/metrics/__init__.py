"""Metrics as small mergeable states: Dice, surfaces, lesions, OOD voxels and cases, bootstrap."""
