"""Losses: pure functions of outputs and labels, always in float32."""
