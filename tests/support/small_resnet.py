"""A small residual network, and images for it."""

import numpy as np

from pni_tf import build_model

IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype("float32")


def resnet():
    return build_model(
        "resnet8", input_shape=(8, 8, 1), num_classes=10, mean=[0.3], std=[0.4], seed=1
    )
