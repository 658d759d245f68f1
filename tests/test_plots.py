"""The figures carry the data that they are given."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from pni_tf.plots import (
    plot_accuracies,
    plot_adversarial_examples,
    plot_alphas,
    plot_curves,
)

PNG = b"\x89PNG\r\n\x1a\n"


def saved(figure, path):
    """Draws the figure, which can fail where its making did not."""
    figure.savefig(path)
    return path.read_bytes()


def alphas_of(layers, epochs):
    curves = np.random.default_rng(0).uniform(0.1, 0.4, (layers, epochs))
    return {f"conv{i}": list(curve) for i, curve in enumerate(curves)}


@pytest.mark.parametrize(("layers", "epochs"), [(1, 1), (1, 4), (8, 4), (20, 1)])
def test_alphas(tmp_path, layers, epochs):
    alphas = alphas_of(layers, epochs)
    figure = plot_alphas(alphas, title="PNI-W")
    (axes,) = figure.axes
    assert axes.get_title() == "PNI-W"
    assert axes.get_xlabel() == "epoch"
    lowest, highest = axes.get_ylim()
    assert lowest == 0
    assert highest > 1.04 * max(map(max, alphas.values()))  # No marker is cut.
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert len(axes.lines) == layers
    for line, values in zip(axes.lines, alphas.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), range(1, epochs + 1))
        np.testing.assert_array_equal(line.get_ydata(), values)
        # A line through one point would not be seen.
        assert line.get_marker() == ("o" if epochs == 1 else "None")
    assert len({tuple(line.get_color()) for line in axes.lines}) == layers
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    largest = sorted(alphas, key=lambda name: alphas[name][-1])[-5:]
    assert sorted(named) == sorted(largest)
    assert saved(figure, tmp_path / "alphas.png").startswith(PNG)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("class_names", [None, ("cat", "dog", "frog")])
@pytest.mark.parametrize("count", [1, 4])
def test_adversarial_examples(tmp_path, channels, class_names, count):
    epsilon = 0.1
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (count, 5, 6, channels)).astype("float32")
    noise = rng.uniform(-epsilon, epsilon, images.shape).astype("float32")
    noise[0, 0, 0], noise[0, 0, 1] = epsilon, -epsilon
    labels = np.arange(count) % 3
    predictions = np.where(np.arange(count) % 2, labels, (labels + 1) % 3)
    figure = plot_adversarial_examples(
        images,
        images + noise,
        labels,
        predictions,
        epsilon=epsilon,
        class_names=class_names,
        title="PGD",
    )
    assert figure.get_suptitle() == "PGD"
    assert figure.get_figwidth() >= 4  # Otherwise a title would not fit.
    grid = np.reshape(figure.axes, (3, count))

    def pixels(axes):
        return np.asarray(axes.images[0].get_array()).reshape(images.shape[1:])

    for i in range(count):
        np.testing.assert_allclose(pixels(grid[0, i]), images[i])
        np.testing.assert_allclose(pixels(grid[1, i]), images[i] + noise[i])
        perturbation = (noise[i] + epsilon) / (2 * epsilon)
        np.testing.assert_allclose(pixels(grid[2, i]), perturbation, atol=1e-5)
        for row, classes in enumerate((labels, predictions)):
            name = class_names[classes[i]] if class_names else str(classes[i])
            assert grid[row, i].get_title() == name
            wrong = classes[i] != labels[i]
            colour = to_rgb(grid[row, i].title.get_color())
            assert colour == to_rgb("firebrick" if wrong else "black")
        for axes in grid[:, i]:
            # Else matplotlib would stretch each grey picture to its own range.
            assert axes.images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(pixels(grid[2, 0])[0, 0], 1, atol=1e-5)  # This is white.
    np.testing.assert_allclose(pixels(grid[2, 0])[0, 1], 0, atol=1e-5)  # This is black.
    assert [axes.get_ylabel() for axes in grid[:, 0]] == [
        "image",
        "adversarial",
        "perturbation\n× 5",
    ]
    assert saved(figure, tmp_path / "examples.png").startswith(PNG)


def test_adversarial_examples_without_a_perturbation(tmp_path):
    images = np.full((2, 3, 3, 1), 0.5, "float32")
    figure = plot_adversarial_examples(images, images, [1, 2], [1, 2], epsilon=0.0)
    for axes in figure.axes[4:]:
        np.testing.assert_array_equal(axes.images[0].get_array(), np.full((3, 3), 0.5))
    assert saved(figure, tmp_path / "examples.png").startswith(PNG)


@pytest.mark.parametrize("networks", [1, 2, 3])
@pytest.mark.parametrize("attacks", [1, 5])
def test_accuracies(tmp_path, networks, attacks):
    rng = np.random.default_rng(0)
    rows = [f"attack {i}" for i in range(attacks)]
    columns = {
        f"network {k}": {row: (rng.uniform(), rng.uniform(0, 0.1)) for row in rows}
        for k in range(networks)
    }
    figure = plot_accuracies(columns, title="digits")
    (axes,) = figure.axes
    assert axes.get_title() == "digits"
    assert axes.get_ylabel() == "accuracy (%)"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == rows
    assert list(axes.get_yticks()) == [0, 20, 40, 60, 80, 100]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(columns)
    bars = [bars for bars in axes.containers if hasattr(bars, "patches")]
    written = iter(text.get_text() for text in axes.texts)
    colours, edges = set(), []
    for container, column in zip(bars, columns.values(), strict=True):
        segments = container.errorbar.lines[2][0].get_segments()
        for i, (bar, segment) in enumerate(zip(container, segments, strict=True)):
            mean, std = (100 * value for value in column[rows[i]])
            assert bar.get_height() == pytest.approx(mean)
            assert segment[:, 1] == pytest.approx([mean - std, mean + std])
            assert next(written) == f"{mean:.0f}"
            edges.append((bar.get_x(), bar.get_x() + bar.get_width()))
            # The bar is over its tick.
            assert abs(bar.get_x() + bar.get_width() / 2 - i) < 0.5
        colours.add(container[0].get_facecolor())
    assert len(colours) == networks
    edges.sort()
    for left, right in itertools.pairwise(edges):  # No bar hides another.
        assert left[1] <= right[0] + 1e-9
    assert saved(figure, tmp_path / "accuracies.png").startswith(PNG)


def test_accuracies_of_networks_with_different_attacks(tmp_path):
    columns = {
        "PNI": {"clean": (0.9, 0.01), "PGD + EOT": (0.4, 0.02)},
        "plain": {"clean": (1.0, 0.0), "PGD": (0.1, 0.0)},
    }
    figure = plot_accuracies(columns)
    (axes,) = figure.axes
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["clean", "PGD + EOT", "PGD"]
    found = {}
    for bar, text in zip(axes.patches, axes.texts, strict=True):
        tick = ticks[round(bar.get_x() + bar.get_width() / 2)]
        found.setdefault(tick, []).append(round(bar.get_height(), 6))
        assert text.get_text() == f"{bar.get_height():.0f}"
    assert found == {"clean": [90, 100], "PGD + EOT": [40], "PGD": [10]}
    assert saved(figure, tmp_path / "accuracies.png").startswith(PNG)
    frame = axes.get_window_extent()
    for text in axes.texts:  # This includes the label of 100 %.
        assert text.get_window_extent().y1 < frame.y1


CURVES = {
    "PNI": {0.2: (0.4, 0.03), 0.1: (0.7, 0.02), 1.0: (0.05, 0.01)},
    "plain": {0.1: (0.3, 0.0), 1.0: (0.0, 0.0)},
}


def test_curves(tmp_path):
    figure = plot_curves(CURVES, xlabel="epsilon", title="digits")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epsilon", "accuracy (%)")
    assert axes.get_title() == "digits"
    colours = set()
    for drawn, (name, points) in zip(axes.containers, CURVES.items(), strict=True):
        line, _, (bars,) = drawn.lines
        values = sorted(points)  # Otherwise the line would go to and fro.
        means = np.array([100 * points[value][0] for value in values])
        stds = np.array([100 * points[value][1] for value in values])
        np.testing.assert_allclose(np.array(line.get_xdata(), float), values)
        np.testing.assert_allclose(line.get_ydata(), means)
        segments = np.array(bars.get_segments())
        np.testing.assert_allclose(segments[:, :, 0], np.transpose([values] * 2))
        np.testing.assert_allclose(
            segments[:, :, 1], np.transpose([means - stds, means + stds])
        )
        assert drawn.get_label() == name
        colours.add(to_rgb(line.get_color()))
    assert len(colours) == 2
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == list(CURVES)
    lowest, highest = axes.get_ylim()
    assert lowest < 0 and highest > 100  # Markers at 0 and 100 are whole.
    assert saved(figure, tmp_path / "curves.png").startswith(PNG)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((0.1, 0.2, 1.0), "log"),
        ((1, 2, 5, 10, 100), "log"),
        ((0.1, 0.8), "linear"),  # The factor is 8 at most.
        ((1, 2, 4), "linear"),
        ((0.0, 1.0, 100.0), "linear"),  # There is no logarithm of 0.
        ((20,), "linear"),
    ],
)
def test_axis_of_curves(tmp_path, values, scale):
    curve = {value: (0.5, 0.1) for value in values}
    figure = plot_curves({"PNI": curve}, xlabel="value")
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    if scale == "log":  # Each point has its tick, with its number.
        ticks = [tick.get_text() for tick in axes.get_xticklabels()]
        assert list(map(float, ticks)) == pytest.approx(values)
        np.testing.assert_allclose(axes.get_xticks(), values)
    assert saved(figure, tmp_path / "curves.png").startswith(PNG)
