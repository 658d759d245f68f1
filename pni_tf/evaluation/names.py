"""What rows are found by, composed in one place, which needs no TensorFlow."""

# A source of transfers. The seeds of draws follow from it: other words change numbers.
NOISE_FREE_TWIN = "noise-free twin"
OF_PAPER = "Table 7"  # The source of those checks that are the paper's.


def attack_name(kind: str, *effort: int, restarts: int = 1) -> str:
    """Returns such as `PGD-40`, from its class, its steps or the like, and restarts."""
    if kind == "CarliniWagnerL2":
        name = f"C&W L2 {'×'.join(map(str, effort))}"
    else:
        words = "random search" if kind == "RandomSearch" else kind
        name = "-".join([words, *map(str, effort)])
    return name + (f" ×{restarts}" if restarts > 1 else "")


def row_name(name: str, expectation: int = 1, towards: str | None = None) -> str:
    """Returns what tables call an attack, by its classes and its expectation."""
    if towards is not None:
        name += f" towards {towards.replace('_', ' ')}"
    return name + (f" EOT-{expectation}" if expectation > 1 else "")
