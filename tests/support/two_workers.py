"""One of two workers of `test_workers.py`, a process of its own.

    two_workers.py INDEX ADDRESSES FILE

Trains with and without synchronised batch normalisation, evaluates, and writes what it
has found to FILE.
"""

import os
import pickle
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
from replica_training import ROWS, examples, network, train

from pni_tf import evaluate_robustness, load_target
from pni_tf.distribution.cluster import Cluster
from pni_tf.distribution.workers import connect
from pni_tf.evaluation import ResultStore
from pni_tf.settings.machine import Devices


def main():
    index, addresses, path = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    cluster = Cluster(tuple(addresses), index)
    devices = Devices(strategy="multi_worker", cluster_timeout=60)
    caught = []
    signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
    workers = connect(devices, cluster)
    os.kill(os.getpid(), signal.SIGTERM)
    found = {
        "caught": caught,
        "gathered": workers.gather([10 + index, 7]),
        "synchronized": train(workers, synchronized=True),
        "own statistics": train(workers, synchronized=False),
    }
    odd = SimpleNamespace(path="layer/state", numpy=lambda: np.array([index]))
    same = SimpleNamespace(path="layer/kernel", numpy=lambda: np.array([7.0]))
    try:
        workers.check_agreement([same, odd])
    except RuntimeError as error:
        found["disagreement"] = str(error)
    keras.utils.set_random_seed(0)
    folder = Path(path).parent
    images, labels = examples()
    model = folder / "model.keras"
    if workers.is_chief:
        network(False).save(model)
    workers.barrier()
    found["evaluated"] = [
        result.predictions
        for result in evaluate_robustness(
            load_target(model, devices=workers.devices),
            images,
            labels,
            ROWS,
            draws=3,
            batch_size=4,
            store=ResultStore(folder / "store", "model"),
            workers=workers,
        )
    ]
    workers.barrier()
    with open(path, "wb") as file:
        pickle.dump(found, file)
    assert np.isfinite(found["synchronized"]["history"]["loss"]).all()


if __name__ == "__main__":
    main()
