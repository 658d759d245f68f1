"""`bin/export`: from a `.keras` file to a SavedModel."""

from pathlib import Path

from pni_tf.cli import app

USAGE = """\
Exports a .keras file, or the model of a run directory, as a SavedModel that TensorFlow
alone can load and attack. Its endpoints: serve (noise on), serve_clean (noise off),
serve_mean (mean probabilities of n draws), reseed.

    bin/export MODEL DIRECTORY"""


def run() -> None:
    """Entry point of `pni-export`."""
    app.run(main, usage=USAGE, names=2)


def main(source: str, directory: str) -> None:
    source = Path(source)
    if source.is_dir():
        source = source / "model.keras"
    if not source.is_file():
        raise FileNotFoundError(
            f"expected a .keras file or a run directory. There is nothing at {source}"
        )
    app.import_tensorflow()
    from pni_tf.export import export_saved_model
    from pni_tf.targets import load_model

    export_saved_model(load_model(source), directory)
    print(f"Exported {source} to {directory}")
