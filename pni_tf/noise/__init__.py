"""Noise layers and how they get into a Keras model and out again."""
