"""The plots of an evaluation as files for slides and papers, and what is compared with what, which the page shows too.

The page draws its own, which follow the screen's width and colours; these are of fixed size, on white.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from embervlm.evaluation.metrics import Figure, Measures
from embervlm.evaluation.run import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

#: Every name that a plot's file may have.
PLOT_NAMES = tuple(f"{plot}.{form}" for plot in ("comparison", "confusion", "reliability") for form in ("png", "svg"))

#: What the row of the model over all tasks is called.
MODEL = "the model"

_COLOURS = {"model": "#4a6fb5", "baseline": "#a8a39b", "bound": "#ffffff"}
_INK, _SOFT, _GOOD, _BAD = "#1c1b1a", "#63605b", "#1b7f3b", "#b3261e"


@dataclass(frozen=True, slots=True)
class Row:
    """One bar of the comparison.

    Attributes:
        name: what answers.
        kind: the model, a baseline, or a bound that is counted from the labels.
        measures: all that was measured of it; None for a bound.
        bound: its leader accuracy; None for all else.
    """

    name: str
    kind: Literal["model", "baseline", "bound"]
    measures: Measures | None = None
    bound: float | None = None

    @property
    def leader_accuracy(self) -> Figure | float:
        """What the bar shows."""
        if self.measures is not None:
            return self.measures.leader_accuracy
        assert self.bound is not None
        return self.bound

    @property
    def value(self) -> float:
        """The bar's length."""
        shown = self.leader_accuracy
        return shown.value if isinstance(shown, Figure) else shown


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that were measured over the same tasks, and so may be compared."""

    title: str
    rows: tuple[Row, ...]


def comparison(evaluation: Evaluation) -> list[Group]:
    """What is compared with what: over all tasks, and over those with pictures where there are any."""
    pictured = [
        Row(name, "model", measures)
        for name, measures in (
            ("its own picture", evaluation.own_pictures),
            ("no picture", evaluation.no_picture),
            ("a blank picture", evaluation.blank_picture),
            ("another task's picture", evaluation.shuffled_pictures),
        )
        if measures is not None
    ]
    bounds = [Row("best from the text alone", "bound", bound=evaluation.text_only_bound)]
    if evaluation.picture_only_bound is not None:
        bounds.append(Row("best from the picture alone", "bound", bound=evaluation.picture_only_bound))
    every = [] if evaluation.model is None else [Row(MODEL, "model", evaluation.model)]
    every += [Row(name, "baseline", measures) for name, measures in evaluation.baselines.items()]
    every.append(Row("always the commonest leader", "bound", bound=evaluation.majority))
    # The bounds are of the tasks with pictures where there are any.
    if evaluation.picture_only_bound is None:
        return [Group(f"All {evaluation.tasks:,} tasks", (*every, *bounds))]
    groups = [Group(f"All {evaluation.tasks:,} tasks", tuple(every))]
    title = "The tasks with pictures"
    if pictured and pictured[0].measures is not None:
        title = f"The {pictured[0].measures.leader_accuracy.tasks:,} tasks with pictures: the model given"
    return [*groups, Group(title, (*pictured, *bounds))]


class ReportError(ValueError):
    """A report that cannot be made; the message says what is missing."""


def check_plots() -> None:
    """Say before anything is measured that its plots could not be drawn.

    Raises:
        ReportError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ReportError(
            "a report needs matplotlib, which is not installed; install it with pip install 'embervlm[evaluate]'"
        )


def plots(evaluation: Evaluation) -> dict[str, bytes]:
    """The plots' files by name, as PNG and SVG; confusion and reliability are the model's, where there is one.

    Raises:
        ReportError: matplotlib is not installed.
    """
    check_plots()
    import matplotlib

    # Names come from outside: a dollar sign in one is no formula. The same figures give the same bytes.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "embervlm", "svg.fonttype": "path"}):
        drawn = {"comparison": _comparison(comparison(evaluation))}
        if evaluation.model is not None:
            drawn["confusion"] = _confusion(evaluation.model, evaluation.robots)
            drawn["reliability"] = _reliability(evaluation.model)
        return {f"{name}.{form}": content for name, canvas in drawn.items() for form, content in _files(canvas)}


def _files(canvas: Canvas) -> Iterator[tuple[str, bytes]]:
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=form, dpi=200, metadata=metadata)
        yield form, buffer.getvalue()


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    """An empty plot; its size is in inches."""
    # Without pyplot: no display is looked for, and nothing is kept between plots.
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_SOFT, labelcolor=_INK)
    return canvas, axes


def _comparison(groups: list[Group]) -> Canvas:
    rows: list[tuple[float, Row]] = []
    titles: list[tuple[float, str]] = []
    place = 0.0
    for group in groups:
        titles.append((place, group.title))
        rows += [(place + 1 + number, row) for number, row in enumerate(group.rows)]
        place += len(group.rows) + 1.5
    canvas, axes = _canvas(8, 0.8 + 0.34 * place)
    for at, row in rows:
        axes.barh(at, row.value, 0.7, color=_COLOURS[row.kind], edgecolor=_SOFT, linewidth=0.8 * (row.kind == "bound"))
        shown, end = row.leader_accuracy, row.value
        if isinstance(shown, Figure):
            axes.plot([shown.low, shown.high], [at, at], color=_INK, linewidth=1.5, marker="|", markersize=7)
            end = max(end, shown.high)
        axes.text(end + 0.012, at, f"{row.value:.1%}", va="center", color=_INK, fontsize=9)
    for at, title in titles:
        axes.text(0, at, title, va="center", color=_INK, fontweight="bold", fontsize=10)
    axes.set_yticks([at for at, _ in rows], [_short(row.name) for _, row in rows])
    axes.set_ylim(place - 1, -0.6)
    axes.set_xlim(0, 1.08)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_xlabel("tasks whose leading robot is right, with 95% intervals", color=_INK)
    axes.tick_params(axis="y", length=0)
    return canvas


def _confusion(measures: Measures, robots: tuple[str, ...]) -> Canvas:
    from matplotlib.colors import LinearSegmentedColormap

    count = len(robots)
    size = max(4.5, 2.2 + 0.75 * count)
    canvas, axes = _canvas(size, size * 0.9)
    shares = [[number / max(1, sum(row)) for number in row] for row in measures.confusion]
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("", ["#ffffff", _COLOURS["model"]]), vmin=0, vmax=1)
    for i, row in enumerate(measures.confusion):
        for j, number in enumerate(row):
            axes.text(j, i, f"{number:,}", ha="center", va="center", color="white" if shares[i][j] > 0.6 else _INK)
    names = [_short(name) for name in robots]
    axes.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_xlabel("picked to lead", color=_INK)
    axes.set_ylabel("should lead", color=_INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return canvas


def _reliability(measures: Measures) -> Canvas:
    canvas, axes = _canvas(5.5, 5)
    filled = [each for each in measures.reliability if each.tasks]
    most = max((each.tasks for each in filled), default=1)
    axes.plot([0, 1], [0, 1], color=_SOFT, linestyle="--", linewidth=1)
    for each in filled:
        colour = _BAD if each.confidence > each.accuracy else _GOOD
        axes.plot([each.confidence] * 2, [each.confidence, each.accuracy], color=colour, linewidth=1)
    axes.scatter(
        [each.confidence for each in filled],
        [each.accuracy for each in filled],
        [20 + 180 * each.tasks / most for each in filled],
        color=_COLOURS["model"],
        edgecolor="white",
        zorder=3,
    )
    axes.set_xlim(-0.02, 1.04)
    axes.set_ylim(-0.02, 1.04)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_xlabel("mean confidence", color=_INK)
    axes.set_ylabel("leading robot right", color=_INK)
    axes.set_title(f"ECE {measures.ece.value:.3f} ({measures.ece.low:.3f}–{measures.ece.high:.3f})", fontsize=10)
    return canvas


def _short(name: str) -> str:
    """A name from outside, in one line that fits a plot."""
    name = " ".join(name.split())
    return name if len(name) <= 32 else f"{name[:31]}…"
