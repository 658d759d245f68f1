"""What Keras lacks for uneven batches on several replicas and workers."""

import keras
import tensorflow as tf


class DistributedModel(keras.Model):
    """A model whose `fit` works there: Keras 3.15's fails (keras-team/keras#20585)."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras adds up the parts of a batch to learn its shape, which fails for parts
        # of different sizes, and on several workers. The part of one replica will do.
        strategy = self._distribute_strategy
        if iterator is not None and strategy is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tf.nest.map_structure(
                lambda values: strategy.experimental_local_results(values)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        context = tf.distribute.get_replica_context()
        several = tf.distribute.MultiWorkerMirroredStrategy
        if context is None or not isinstance(context.strategy, several):
            return logs
        # On several workers Keras takes the mean over axis 0, which scalars lack.
        return tf.nest.map_structure(lambda value: tf.reshape(value, [1]), logs)


def share_of_batch(count: tf.Tensor) -> tf.Tensor | float:
    """Returns the factor that makes the mean over replicas that over the batch.

    It is the number of examples of this replica, `count`, over the mean of all.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return 1.0
    message = (
        "A replica got no image, because the last batch holds fewer images than there "
        "are replicas: choose another batch size, or drop the remainder"
    )
    with tf.control_dependencies([tf.debugging.assert_positive(count, message)]):
        count = tf.cast(count, tf.float32)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return replicas * count / total


def average_over_replicas(variables: list) -> None:
    """Makes the states equal that each replica has updated by its own part."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or not variables:
        return
    values = [tf.identity(variable.value) for variable in variables]
    means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(mean)


def states_of_replicas(model: keras.Model) -> list:
    """Returns the moving statistics that each replica takes from its own images."""
    return [
        variable
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        for variable in layer.non_trainable_variables
    ]
