"""Zeroth-order optimisation (ZOO), an attack by queries alone."""
