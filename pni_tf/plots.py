"""Figures, as matplotlib `Figure` objects: call `savefig` on what is returned."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_alphas(alphas: dict[str, list[float]], *, title: str = "") -> Figure:
    """Draws the noise coefficient of each layer over the epochs (Fig. 2).

    Args:
        alphas: From the name of a layer to the magnitude of its alpha after each epoch.
            Layers are drawn from light to dark in this order; the five with the largest
            final value are named in the legend.
        title: Title of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    named = sorted(alphas, key=lambda name: -alphas[name][-1])[:5]
    colours = _shades(len(alphas))
    for (name, values), colour in zip(alphas.items(), colours, strict=True):
        (line,) = axes.plot(range(1, len(values) + 1), values, color=colour, lw=1)
        if name in named:
            line.set(label=name, linewidth=2)
        if len(values) == 1:  # Such a line would not be seen.
            line.set_marker("o")
    axes.set(xlabel="epoch", ylabel=r"$|\alpha|$", title=title)
    axes.update_datalim([(1, 0)])  # The margin at the top is a share of the whole axis.
    axes.autoscale_view()
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.legend(title="largest at the end")
    axes.grid(alpha=0.3)
    return figure


def plot_adversarial_examples(
    images: np.ndarray,
    adversarial: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    epsilon: float,
    class_names: tuple[str, ...] | None = None,
    confidences: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """Draws images, their adversarial twins and the magnified perturbation (Fig. 1).

    Args:
        images: Float `[N, H, W, C]` in `[0, 1]`, with C 1 or 3; one column each.
        adversarial: Their adversarial twins, of the same shape.
        labels: Integers `[N]`, the true labels.
        predictions: Integers `[N]`, one draw's labels of the adversarial images.
        epsilon: Perturbations of -epsilon and +epsilon are drawn black and white.
        class_names: Names of the classes; None shows their numbers.
        confidences: Probabilities `[N]` of the labels for the images, and of the
            predictions for their twins; they are written below the names.
        title: Title of the figure.
    """
    count, scale = len(images), 0.5 / max(epsilon, 1e-12)
    rows = {
        "image": images,
        "adversarial": adversarial,
        f"perturbation\n× {scale:.3g}": np.clip(
            (adversarial - images) * scale + 0.5, 0, 1
        ),
    }
    width = max(1.4 * count + 0.6, 4)  # One image needs room for the title, too.
    figure = Figure(figsize=(width, 5), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes_of_row, (name, row) in zip(grid, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, image in zip(axes_of_row, row, strict=True):
            axes.imshow(image.squeeze(), vmin=0, vmax=1, cmap="gray")
            axes.set(xticks=[], yticks=[])
    for k, found in enumerate((labels, predictions)):
        for i, label in enumerate(found):
            name = class_names[label] if class_names else str(label)
            if confidences is not None:
                name += f"\n{confidences[k][i]:.1%}"
            colour = "black" if label == labels[i] else "firebrick"
            grid[k][i].set_title(name, color=colour, fontsize=10)
    figure.suptitle(title)
    return figure


def plot_accuracies(
    columns: dict[str, dict[str, tuple[float, float]]], *, title: str = ""
) -> Figure:
    """Draws the accuracy under each attack, one group of bars for each attack.

    Args:
        columns: From the name of a network to its rows: from the name of the attack to
            the mean and the standard deviation of the accuracy, in `[0, 1]`.
        title: Title of the figure.
    """
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    figure = Figure(figsize=(1.6 * len(rows) + 1.5, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    colours = _shades(len(columns))
    for k, (name, column) in enumerate(columns.items()):
        offset = (k - (len(columns) - 1) / 2) * width
        means, stds = 100 * np.array(list(column.values())).reshape(-1, 2).T
        bars = axes.bar(
            [rows.index(row) + offset for row in column],
            means,
            width,
            yerr=stds,
            capsize=2,
            color=colours[k],
            label=name,
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    axes.set_xticks(range(len(rows)), rows)
    axes.set_yticks(range(0, 101, 20))
    # Room for the label and the error bar above 100 %.
    axes.set(ylabel="accuracy (%)", ylim=(0, 114), title=title)
    figure.legend(loc="outside lower center", ncols=min(len(columns), 4))
    return figure


def plot_curves(
    curves: dict[str, dict[float, tuple[float, float]]],
    *,
    xlabel: str,
    title: str = "",
) -> Figure:
    """Draws the accuracy over a setting of the attack, one line for each network.

    Args:
        curves: From the name of a network to its points: from the value of the setting
            to the mean and the standard deviation of the accuracy, in `[0, 1]`.
        xlabel: Name of the setting.
        title: Title of the figure.
    """
    figure, axes = _accuracy_axes(xlabel, title)
    colours = _shades(len(curves))
    for (name, points), colour in zip(curves.items(), colours, strict=True):
        points = dict(sorted(points.items()))
        means, stds = 100 * np.array(list(points.values())).reshape(-1, 2).T
        axes.errorbar(
            list(points), means, stds, color=colour, marker="o", capsize=2, label=name
        )
    values = [value for points in curves.values() for value in points]
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_xscale("log")
        ticks = sorted(set(values))
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    axes.legend()
    return figure


def plot_certified_accuracy(
    radii: dict[str, np.ndarray], *, norm: str, title: str = ""
) -> Figure:
    """Draws the certified accuracy over the radius, one line for each method.

    Args:
        radii: From the name of a method to the radii `[N]` of all images, with NaN for
            an image that is classified wrongly.
        norm: The norm of the radii.
        title: Title of the figure.
    """
    figure, axes = _accuracy_axes(f"radius ({norm.upper()})", title, "certified ")
    for (name, values), colour in zip(radii.items(), _shades(len(radii)), strict=True):
        # As many images as come after it are certified at the radius of each.
        known = np.sort(values[np.isfinite(values)])
        share = 100 * np.arange(len(known), 0, -1) / len(values)
        axes.step(
            [0, *known], [*share[:1], *share], where="pre", color=colour, label=name
        )
    axes.legend()
    return figure


def _accuracy_axes(xlabel, title, kind=""):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=f"{kind}accuracy (%)", title=title, ylim=(-3, 103))
    axes.grid(alpha=0.3)
    return figure, axes


def _shades(count):
    return colormaps["viridis_r"](np.linspace(0.15, 0.95, count))
