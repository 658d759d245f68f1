"""Metadata, dependencies and commands of pni_tf."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "pni_tf/__init__.py").read_text(), re.MULTILINE
).group(1)

# Of examples/, which attack an export with them.
ATTACK_TOOLS = ["adversarial-robustness-toolbox>=1.20", "foolbox>=3.3.4"]

setup(
    name="pni_tf",
    version=VERSION,
    description="Parametric Noise Injection for TensorFlow and Keras 3: trained "
    "randomness against adversarial examples, and its honest evaluation",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[
        "pni_tf",
        "pni_tf.attacks",
        "pni_tf.attacks.zoo",
        "pni_tf.cli",
        "pni_tf.configs",
        "pni_tf.distribution",
        "pni_tf.evaluation",
        "pni_tf.noise",
        "pni_tf.reproduce",
        "pni_tf.settings",
        "pni_tf.training",
    ],
    # The flagfiles live at the top of the checkout, and inside an installed package.
    package_dir={"pni_tf.configs": "configs"},
    package_data={"pni_tf.configs": ["*.cfg"], "pni_tf.reproduce": ["*.json"]},
    install_requires=[
        "absl-py>=2.1",
        "keras>=3.15,<3.16",
        "markdown>=3.5",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.20",  # no longer a dependency of TensorFlow
        "tensorflow>=2.21,<2.22",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6",  # TensorFlow Datasets imports it undeclared.
        "tqdm>=4.66",
    ],
    extras_require={
        "and-cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "examples": ATTACK_TOOLS,
        "peers": ["torch>=2.6", *ATTACK_TOOLS],  # what benchmarks/ compares with
        "test": [
            "hypothesis>=6.150",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "kubernetes-validate>=1.32",
            *ATTACK_TOOLS,
        ],
    },
    entry_points={
        "console_scripts": [
            "pni-train = pni_tf.cli.train:run",
            "pni-evaluate = pni_tf.cli.evaluate:run",
            "pni-export = pni_tf.cli.export:run",
            "pni-reproduce = pni_tf.reproduce.command:run",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
    ],
)
