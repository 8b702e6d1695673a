"""Texts about classes, the encoders that turn them into vectors, and files of such vectors."""
