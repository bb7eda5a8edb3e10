"""The sliders and tick boxes of views a and b, and which value of a call is whose.

Every served model may know other augmentations. A view has a component for each control that one of
them has, and shows those of the model that is picked. Gradio passes values by their place in a
list: here they get their labels, and nothing else counts places.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr

from augself_hub.augmentations.spec import Spec
from serving.demo.comparison import TITLES
from serving.demo.controls import Control, Value, controls, labels

Values = dict[str, Value]  # of one view: a control's label -> what it is set to
Updates = dict[Any, Any]  # of the page: a component -> its new value, or a gr.update of it

TICKS = ("Mirrored", "Gray")


class ViewSliders:
    """The components of one view, added to the page at this place.

    Args:
        known: (kind, label) of every control, see `controls.labels`.
        spec: of the model that is picked at first. start: where its controls are at first.

    Attributes:
        components: a control's label -> its slider or tick box.
        headings: a kind -> the heading of its sliders; tick boxes speak for themselves.
    """

    def __init__(self, known: Sequence[tuple[str, str]], spec: Spec, start: Values) -> None:
        self.components: dict[str, gr.Slider | gr.Checkbox] = {}
        self.headings: dict[str, gr.Markdown] = {}
        own = {control.label: control for control in controls(spec)}
        for (kind, tick), row in itertools.groupby(known, lambda one: (one[0], one[1] in TICKS)):
            if not tick:
                title = f"**{TITLES[kind]}**"
                self.headings[kind] = gr.Markdown(title, visible=kind in spec.heads)
            with gr.Row():
                for _, label in row:
                    control, value = own.get(label), start.get(label)
                    self.components[label] = _component(label, control, value)

    def set_to(self, values: Values) -> Updates:
        """Move controls; those without a value stay as they are."""
        return {c: values.get(label, gr.skip()) for label, c in self.components.items()}

    def show_those_of(self, spec: Spec) -> Updates:
        """The controls of another model, each where it changes nothing; the others are hidden."""
        own = {control.label: control for control in controls(spec)}
        updates: Updates = {
            heading: gr.update(visible=kind in spec.heads)
            for kind, heading in self.headings.items()
        }
        for label, component in self.components.items():
            if control := own.get(label):
                updates[component] = gr.update(
                    visible=True, value=control.neutral, **_range(control)
                )
            else:
                updates[component] = gr.update(visible=False)
        return updates


class Sliders:
    """Those of both views. b's stand above a's on the page, and behind them in calls.

    Args:
        specs: of all models; the first one's controls are shown at first.
        a, b: where they are at first.
    """

    def __init__(self, specs: Sequence[Spec], a: Values, b: Values) -> None:
        known = labels(specs)
        with gr.Accordion("What is done to b"):
            self.b = ViewSliders(known, specs[0], b)
        with gr.Accordion("What is done to a", open=False):
            self.a = ViewSliders(known, specs[0], a)
        self.components = [*self.a.components.values(), *self.b.components.values()]
        self.headings = [*self.a.headings.values(), *self.b.headings.values()]

    def labelled(self, values: Iterable[Value]) -> tuple[Values, Values]:
        """The values of `components`, in their order -> those of view a and those of view b."""
        rest = iter(values)
        a, b = ({label: next(rest) for label in view.components} for view in (self.a, self.b))
        return a, b


def neutral(spec: Spec) -> Values:
    """Where the controls of a model change nothing."""
    return {control.label: control.neutral for control in controls(spec)}


def _component(label: str, control: Control | None, value: Value | None) -> gr.Slider | gr.Checkbox:
    """One that the model which is picked does not have is hidden, with any range."""
    shown = control is not None
    if label in TICKS:
        return gr.Checkbox(bool(value), label=label, visible=shown)
    ends = {"minimum": 0, "maximum": 1} if control is None else _range(control)
    return gr.Slider(**ends, value=value, label=label, min_width=180, visible=shown)


def _range(control: Control) -> dict[str, Any]:
    """Of a slider; a tick box has none."""
    if control.tick:
        return {}
    return {"minimum": control.low, "maximum": control.high, "step": control.step}
