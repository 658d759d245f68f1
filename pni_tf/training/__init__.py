"""Adversarial training: the trainer, its callbacks and its checkpoints."""
