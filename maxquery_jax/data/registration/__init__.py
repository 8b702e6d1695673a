"""Brings the contrast phases of a case onto the grid of one of them."""
