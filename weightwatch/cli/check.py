"""``weightwatch check``: validate settings, and the directions in them, before a training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.cli.options import AsJson
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from weightwatch.plan import Plan
    from weightwatch.report.channels.delivery import Delivery


def check(
    config: Annotated[Path, typer.Argument(help="YAML file with the settings.")] = Path("weightwatch.yaml"),
    model: Annotated[
        str | None, typer.Option(help="Base model of the training: do the directions fit it? It is not loaded.")
    ] = None,
    notify: Annotated[
        bool, typer.Option("--notify", help="Send a test message over each channel: does it arrive?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate settings and directions, and try what they need; the exit status is 2 if something is wrong.

    With --model, a direction that does not fit the model is wrong; with --notify, a channel over which no message
    arrives.
    """
    screen = console(stderr=as_json)
    with screen.status("loading torch"):
        from weightwatch.fit import misfits
        from weightwatch.plan import Plan
        from weightwatch.report.channels.trial import tried
    plan = Plan.of(None, config)
    deliveries: dict[str, Delivery] = {}
    if notify:
        if not plan.config.notify:
            raise WeightWatchError(f"{config} has no channels to try. Name some under `notify:`.")
        with screen.status("sending test messages"):
            deliveries = tried(plan.config.notify)
    wrong: dict[str, str] = {}
    if model is not None:
        from weightwatch.cli.base_model import base_model

        wrong = misfits(plan.directions, base_model(model)[1])
    if as_json:
        typer.echo(json.dumps(_document(plan, wrong, deliveries), indent=1))
    else:
        screen.print(_directions(plan, wrong, model))
        screen.print(_rules(plan))
        if notify:
            screen.print(_channels(deliveries))
        for name, reason in wrong.items():
            screen.print(Text.assemble((f"{printable(name)}: ", "bold red"), printable(reason)), soft_wrap=True)
        if model is None:
            screen.print("The settings are valid. Pass --model to see whether the directions fit it.")
        elif not wrong:
            screen.print("The settings are valid, and all directions fit the model.")
    if wrong or not all(delivery.sent for delivery in deliveries.values()):
        raise typer.Exit(BAD_INPUT)


def _document(plan: "Plan", wrong: dict[str, str], deliveries: "Mapping[str, Delivery]") -> dict[str, Any]:
    return {
        "every": plan.config.every,
        "directions": [
            {
                "name": direction.name,
                "kind": direction.card.kind,
                "base": direction.card.base,
                "doubt": direction.card.doubt,
                "misfit": wrong.get(direction.name),
            }
            for direction in plan.directions
        ],
        "rules": [
            {
                "alert": rule.alert,
                "calibrated": rule.calibration is not None,
                "baseline": rule.baseline.runs if rule.baseline is not None else None,
            }
            for rule in plan.config.rules
        ],
        "channels": [
            {"name": name, "arrived": delivery.sent, "error": delivery.error} for name, delivery in deliveries.items()
        ],
    }


def _directions(plan: "Plan", wrong: dict[str, str], model: str | None) -> Table:
    table = Table(title="directions", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("name", "kind", "base", "evaluation", "fits the model"):
        table.add_column(heading, overflow="fold")
    for direction in plan.directions:
        card = direction.card
        fits = "–" if model is None else "no" if direction.name in wrong else "yes"
        cells = [direction.name, card.kind, card.base or "–", card.doubt or "passed", fits]
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if fits == "no" else "")
    return table


def _rules(plan: "Plan") -> Table:
    table = Table(title="rules", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("alert", "condition", "threshold", "actions"):
        table.add_column(heading, overflow="fold")
    for rule in plan.config.rules:
        side = "above" if rule.above is not None else "below"
        condition = f"{rule.direction} {rule.metric} {side} {rule.threshold:g}, for {rule.for_}"
        known = rule.calibration
        by_whom = "default, not calibrated" if rule.default else "by hand"
        if rule.baseline is not None:
            condition += f", over a baseline of {rule.baseline.runs} runs"
            by_whom = "not calibrated"
        source = by_whom if known is None else f"calibrated on {known.runs} runs, {known.rate:.1%} false alarms"
        table.add_row(*(Text(printable(cell)) for cell in (rule.alert, condition, source, ", ".join(rule.actions))))
    if not plan.config.rules:
        table.add_row("none: there will be no alerts", "", "", "")
    return table


def _channels(deliveries: "Mapping[str, Delivery]") -> Table:
    table = Table(title="channels", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("channel", "a test message"):
        table.add_column(heading, overflow="fold")
    for name, delivery in deliveries.items():
        outcome = "has arrived" if delivery.sent else f"was not sent: {delivery.error}"
        table.add_row(Text(printable(name)), Text(printable(outcome)), style="" if delivery.sent else "red")
    return table
