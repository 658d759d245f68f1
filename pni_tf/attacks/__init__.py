"""Adversarial attacks in pure TensorFlow, right for random networks."""
