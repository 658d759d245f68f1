"""What the conversions refuse, and that they say which layer and what to do."""

import keras
import pytest
from keras import layers as kl

from pni_tf import PNIOutput, PNIWeight, freeze_noise, inject_pni, strip_noise


def functional(layer, shape=(6, 4), call=lambda layer, values: layer(values)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, call(layer, inputs), name="m")


def dense():
    return functional(kl.Dense(2, name="fc"))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


HIDDEN_NOISE = {
    "time distributed": lambda: kl.TimeDistributed(PNIWeight(kl.Dense(2)), name="hide"),
    "wrapped model": lambda: PNIOutput(
        keras.Sequential([PNIWeight(kl.Dense(2))], name="hide")
    ),
}


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (dense, {"location": "x"}, ValueError, "`location` must be.*'x'"),
        (dense, {"granularity": "x"}, ValueError, "granularity='x'"),
        (dense, {"exclude": ("no",)}, ValueError, "not have: .'no'.*'fc'"),
        (
            dense,
            {"exclude": ("fc",)},
            ValueError,
            "'m' has no layer with a kernel.*'fc'",
        ),
        (dense, {"location": "i"}, ValueError, "has none. Put a `keras.layers."),
        (
            lambda: inject_pni(dense()),
            {},
            ValueError,
            "already has noise, at layer 'fc_pni_weight'. Call `strip_noise`",
        ),
        (
            lambda: functional(kl.TimeDistributed(PNIWeight(kl.Dense(2)), name="td")),
            {},
            ValueError,
            "already has noise, at layer 'td'",
        ),
        (
            lambda: keras.Sequential([kl.Dense(2)], name="s"),
            {},
            ValueError,
            "'s' is not built.*`keras.Input`",
        ),
        (Subclassed, {}, TypeError, "Functional or Sequential.*Subclassed"),
        (
            lambda: functional(Subclassed()),
            {},
            TypeError,
            "Functional or Sequential.*Subclassed",
        ),
        (
            lambda: functional(
                kl.MultiHeadAttention(1, 2, name="heads"), call=lambda f, x: f(x, x)
            ),
            {},
            ValueError,
            "Cannot wrap layer 'heads' of 'm' .*exclude=.'heads',",
        ),
        (
            lambda: functional(
                kl.GRU(4, name="rnn"),
                call=lambda f, x: f(x, initial_state=[x[:, 0]]),
            ),
            {},
            ValueError,
            "Cannot wrap layer 'rnn' .*initial_state.*exclude=.'rnn',",
        ),
        (
            lambda: functional(
                kl.GRU(4, name="rnn"),
                call=lambda f, x: f(x, mask=keras.ops.any(x > 0, -1)),
            ),
            {},
            ValueError,
            "Cannot wrap layer 'rnn' .*mask.*exclude=.'rnn',",
        ),
        (
            lambda: functional(
                kl.GRU(4, return_state=True, name="rnn"), call=lambda f, x: f(x)[0]
            ),
            {"location": "a-a"},
            ValueError,
            "Cannot wrap layer 'rnn' .*needs one tensor.*exclude=.'rnn',",
        ),
        (
            lambda: functional(kl.Conv2D(2, 3, name="conv"), (None, None, 3)),
            {"location": "a-a", "granularity": "elementwise"},
            ValueError,
            "'conv'.*known size for every axis.*fixed input shape",
        ),
    ],
)
def test_inject_refuses(make, arguments, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        inject_pni(make(), **arguments)


@pytest.mark.parametrize("convert", [strip_noise, lambda model: freeze_noise(model, 0)])
@pytest.mark.parametrize("name", HIDDEN_NOISE)
def test_noise_that_cannot_be_reached_is_named(convert, name):
    model = keras.Sequential([keras.Input((3, 4)), HIDDEN_NOISE[name]()])
    with pytest.raises(ValueError, match="inside layer 'hide'"):
        convert(model)


@pytest.mark.parametrize("convert", [strip_noise, lambda model: freeze_noise(model, 0)])
def test_a_subclassed_model_has_no_graph_to_convert(convert):
    with pytest.raises(TypeError, match="Functional or Sequential"):
        convert(Subclassed())
