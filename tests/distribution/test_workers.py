"""N replicas do what one device does: on two logical CPUs and in two processes."""

import os
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from forked_commands import Command
from free_ports import addresses
from replica_training import EPOCHS, ROWS, examples, network, train

from pni_tf import evaluate_robustness, load_target
from pni_tf.distribution.cluster import Cluster, WorkerLost, rendezvous
from pni_tf.distribution.workers import Workers, connect
from pni_tf.settings.machine import Devices
from pni_tf.settings.training import TrainingDevices
from pni_tf.training.replicas import average_over_replicas, share_of_batch

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def two_devices(request):
    return Workers(request.getfixturevalue("mirrored_strategy"))


@pytest.fixture(scope="module")
def one_device():
    return {
        synchronized: train(Workers(), synchronized) for synchronized in (True, False)
    }


def command(*argv):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    return Command(*argv, folder=TESTS, environment=environment)


def start_workers(folder):
    hosts = ",".join(addresses(2))
    return [
        command(TESTS / "two_workers.py", index, hosts, folder / f"{index}.pickle")
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def workers_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def two_processes(workers_folder):
    """What two real workers have found."""
    processes = start_workers(workers_folder)
    logs = ["".join(process.communicate(timeout=200)) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(logs)
    return [
        pickle.loads((workers_folder / f"{i}.pickle").read_bytes()) for i in range(2)
    ]


def assert_equal_training(found, expected):
    """Up to rounding, which a smooth training does not magnify much."""
    for ours, theirs in zip(found["variables"], expected["variables"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    assert set(found["history"]) == set(expected["history"])
    for name, values in expected["history"].items():
        np.testing.assert_allclose(
            found["history"][name], values, rtol=1e-4, err_msg=name
        )


def test_two_devices_equal_one(two_devices, one_device):
    assert_equal_training(train(two_devices, True), one_device[True])


def test_two_workers_equal_one_device(two_processes, one_device):
    for found in two_processes:
        assert_equal_training(found["synchronized"], one_device[True])


@pytest.mark.parametrize("kind", ["synchronized", "own statistics"])
def test_workers_agree_to_the_last_bit(two_processes, kind):
    ours, theirs = (found[kind] for found in two_processes)
    for mine, other in zip(ours["variables"], theirs["variables"], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert ours["history"] == theirs["history"]


def test_own_statistics_of_devices_and_of_workers(
    two_devices, two_processes, one_device
):
    """Without synchronisation two devices are two workers, and not one device."""
    devices = train(two_devices, False)
    assert_equal_training(two_processes[0]["own statistics"], devices)
    kernels = [run["variables"][1] for run in (devices, one_device[False])]
    assert kernels[0].ndim == 4
    assert not np.allclose(*kernels, atol=1e-3)


def test_workers_speak_to_each_other(two_processes):
    for found in two_processes:
        assert found["gathered"].tolist() == [[10, 7], [11, 7]]
        # TensorFlow has left them their handler of SIGTERM.
        assert found["caught"] == ["SIGTERM"]
        assert "1 variables differ between workers" in found["disagreement"]
        assert "layer/state" in found["disagreement"]


def evaluated(target, **kwargs):
    images, labels = examples()
    return [
        result.predictions
        for result in evaluate_robustness(
            target,
            images,
            labels,
            ROWS,
            draws=3,
            batch_size=4,
            **kwargs,
        )
    ]


def test_an_evaluation_by_two_workers(two_processes, workers_folder):
    expected = evaluated(load_target(workers_folder / "model.keras"))
    for found in two_processes:
        for ours, theirs in zip(found["evaluated"], expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    # The chief has put the batches together.
    names = sorted(path.name for path in (workers_folder / "store").iterdir())
    assert names == ["clean.npz", "pgd-2_eot-2.npz"]


@pytest.mark.parametrize("kind", ["model.keras", "saved_model"])
def test_an_evaluation_on_two_devices(tmp_path, kind):
    model = network(False)
    if kind == "saved_model":
        from pni_tf import export_saved_model

        export_saved_model(model, tmp_path / kind)
    else:
        model.save(tmp_path / kind)
    one = load_target(tmp_path / kind)
    two = load_target(tmp_path / kind, devices=["CPU:0", "CPU:1"])
    assert [t.device for t in (two, *two.replicas)] == ["CPU:0", "CPU:1"]
    if kind == "model.keras":
        for target in (two, *two.replicas):
            devices = {v.value.device[-5:] for v in target.source.variables}
            assert devices == {target.device}
    for ours, theirs in zip(evaluated(two), evaluated(one), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    free = zip(evaluated(two.noise_free), evaluated(one.noise_free), strict=True)
    for ours, theirs in free:
        np.testing.assert_array_equal(ours, theirs)
    assert not two.frozen(1).replicas


def test_a_model_in_memory_has_one_device():
    with pytest.raises(ValueError, match="Only a file .* several devices"):
        load_target(network(False), devices=["CPU:0", "CPU:1"])


def test_several_workers_need_a_store(tmp_path):
    network(False).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="need a `store`"):
        evaluated(load_target(tmp_path / "model.keras"), workers=Workers(count=2))


def test_every_replica_gets_its_part(two_devices):
    """In order, without gaps, as even as can be."""
    sizes = [8, 8, 5]
    rows = tf.data.Dataset.range(sum(sizes)).batch(8)
    strategy = two_devices.strategy
    found = []
    for batch in two_devices.distribute(rows.map(lambda r: (r, -r))):
        parts = [strategy.experimental_local_results(values) for values in batch]
        for part, negative in zip(*parts, strict=True):
            np.testing.assert_array_equal(part, -negative)
        found.append([part.numpy().tolist() for part in parts[0]])
    assert [[len(part) for part in parts] for parts in found] == [
        [4, 4],
        [4, 4],
        [2, 3],
    ]
    assert [row for parts in found for part in parts for row in part] == list(range(21))


def test_share_of_batch(two_devices):
    strategy = two_devices.strategy

    def counts(context):
        return tf.constant([3, 1])[context.replica_id_in_sync_group]

    values = strategy.experimental_distribute_values_from_function(counts)
    shares = strategy.experimental_local_results(
        tf.function(lambda: strategy.run(share_of_batch, [values]))()
    )
    assert [float(share) for share in shares] == [1.5, 0.5]
    assert share_of_batch(tf.constant(3)) == 1.0


NO_IMAGES = """
import keras, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
from pni_tf import PNIAdversarialModel
from replica_training import examples, network

images, labels = examples(9)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    trainer = PNIAdversarialModel(network(True))
    trainer.compile(keras.optimizers.SGD(0.1))
trainer.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
"""


def test_a_replica_without_images_is_an_error(tmp_path):
    """Its mean loss would be 0 / 0. In a process, because it ends the strategy."""
    (tmp_path / "script.py").write_text(NO_IMAGES)
    process = command(tmp_path / "script.py")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "A replica got no image, because the last batch" in err


def test_states_of_replicas_become_their_mean(two_devices):
    strategy = two_devices.strategy
    with two_devices.scope():
        variable = keras.Variable([1.0, 2.0], trainable=False)

    def step():
        context = tf.distribute.get_replica_context()
        variable.assign(variable + tf.cast(context.replica_id_in_sync_group, "float32"))
        average_over_replicas([variable])

    tf.function(lambda: strategy.run(step))()
    for replica in variable.value.values:
        np.testing.assert_array_equal(replica, [1.5, 2.5])


def test_one_process_speaks_to_itself():
    workers = Workers()
    assert workers.is_chief
    assert workers.replicas == 1
    assert workers.gather([3, 4]).tolist() == [[3, 4]]
    workers.barrier()
    workers.check_agreement([keras.Variable([1.0])])
    with pytest.raises(tf.errors.InternalError), workers.losing_workers():
        raise tf.errors.InternalError(None, None, "not of a peer")
    two = Workers(index=1, count=2)
    with pytest.raises(WorkerLost, match="worker 1 lost"), two.losing_workers():
        raise tf.errors.UnavailableError(None, None, "Socket closed")


def test_a_missing_worker_is_named_in_time():
    hosts = addresses(2)
    devices = Devices(strategy="multi_worker", cluster_timeout=1)
    with pytest.raises(WorkerLost, match=f"no word from worker 1 .*{hosts[1]}"):
        connect(devices, Cluster(hosts, 0))


def test_a_worker_that_dies_while_they_connect_is_named_in_time(tmp_path):
    """It has met the chief, and never starts TensorFlow."""
    hosts = addresses(2)
    code = (
        "from pni_tf.distribution.cluster import Cluster; "
        "from pni_tf.distribution.workers import connect; "
        "from pni_tf.settings.machine import Devices; "
        "devices = Devices(strategy='multi_worker', cluster_timeout=4); "
        f"connect(devices, Cluster({hosts}, 0))"
    )
    (tmp_path / "script.py").write_text(code)
    chief = command(tmp_path / "script.py")
    while True:  # Try until the chief listens.
        try:
            rendezvous(Cluster(hosts, 1), agree_on="", timeout=1)
            break
        except WorkerLost:
            assert chief.returncode is None
    _, err = chief.communicate(timeout=120)
    assert chief.returncode == 75
    assert f"worker 0 has no connection to all of {', '.join(hosts)}" in err


def test_missing_accelerators():
    with pytest.raises(ValueError, match="No TPU 'local' can be used"):
        connect(TrainingDevices(strategy="tpu"))
    with pytest.raises(ValueError, match="--strategy must be one of: none, mirrored"):
        connect(TrainingDevices(strategy="mirror"))


def test_history_has_every_epoch(one_device):
    assert all(len(values) == EPOCHS for values in one_device[True]["history"].values())
