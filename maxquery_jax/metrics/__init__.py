"""Metrics as small mergeable states, in numpy: Dice, voxel and case OOD detection, bootstrap."""
