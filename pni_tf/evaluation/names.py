"""What rows are found by, in one place: the names of attacks, without TensorFlow."""

NOISE_FREE = "noise-free twin"  # Of a random network, as a source of examples.
OF_PAPER = "Table 7"  # The source of those checks that are the paper's.


def row_name(kind: str, *effort: int, restarts: int = 1, expectation: int = 1) -> str:
    """Returns `PGD-40 EOT-20`, `APGD-DLR-100 ×5`, `C&W L2 9×10`, and so on.

    `kind` is its class (of APGD with the loss), `effort` how many steps or the like.
    """
    words = {"RandomSearch": "random search"}.get(kind, kind)
    name = "-".join([words, *map(str, effort)])
    if kind == "CarliniWagnerL2":
        name = f"C&W L2 {'×'.join(map(str, effort))}"
    name += f" ×{restarts}" if restarts > 1 else ""
    return name + (f" EOT-{expectation}" if expectation > 1 else "")
