"""The texts and colours of values in the preview, about as Grafana shows them."""

import math
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.grafana.panels import Json

COLOURS = {
    **{
        "green": "#73BF69",
        "orange": "#FF9830",
        "red": "#F2495C",
        "blue": "#5794F2",
        "purple": "#B877D9",
        "yellow": "#FADE2A",
    },
    "dark-red": "#C4162A",
}
PALETTE = ["#73BF69", "#F2CC0C", "#5794F2", "#FF9830", "#F2495C", "#B877D9", "#8AB8FF", "#96D98D"]


@dataclass(frozen=True)
class Style:
    """A panel's field options."""

    config: Json

    def of(self, name: str) -> Json:
        """Return the options of the field *name*."""
        options = dict(self.config["defaults"])
        for override in self.config["overrides"]:
            if override["matcher"]["options"] == name:
                options.update({prop["id"]: prop["value"] for prop in override["properties"]})
        return options

    def show(self, name: str, value: Any) -> tuple[str, str]:
        """Return the text and the colour of a value."""
        options = self.of(name)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        for mapping in options.get("mappings", []):
            key = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
            found = (
                mapping["options"].get("result")
                if mapping["type"] == "special" and missing
                else mapping["options"].get(key)
            )
            if found and (missing or mapping["type"] == "value"):
                return str(found["text"]), COLOURS.get(found["color"], found["color"])
        return write(value, options), self.colour(options, value)

    def colour(self, options: Json, value: Any) -> str:
        fixed = options.get("color", {}).get("fixedColor")
        if fixed:
            return COLOURS.get(fixed, str(fixed))
        colour = "green"
        for step in options.get("thresholds", {}).get("steps", []):
            if step["value"] is None or (
                not isinstance(value, str | None) and float(value) >= step["value"]
            ):
                colour = step["color"]
        return COLOURS.get(colour, colour)


def write(value: Any, options: Json) -> str:
    """Return a value in its unit, about as Grafana writes it."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    number, decimals = float(value), options.get("decimals")
    if options.get("unit") == "dateTimeFromNow":
        return f"{(time.time() - number / 1000) / 60:.0f} minutes ago"
    if math.isnan(number):
        return ""
    for unit, size, name in (
        ("s", 3600, " hours"),
        ("s", 60, " min"),
        ("s", 1, " s"),
        ("ms", 1000, " s"),
        ("ms", 0, " ms"),
    ):
        if options.get("unit") == unit and number >= size:
            return _round(number / (size or 1), 1 if size > 1 else decimals) + name
    if options.get("unit") == "s":
        return _round(number * 1000, 0 if number else decimals) + (" ms" if number else " s")
    if options.get("unit") in ("percentunit", "percent"):
        return _round(number * (100 if options["unit"] == "percentunit" else 1), decimals) + "%"
    suffix = options.get("unit", "").partition("suffix:")[2]
    return (
        f"{number:,.0f}" if options.get("unit") == "locale" else _round(number, decimals) + suffix
    )


def _round(number: float, decimals: int | None) -> str:
    if decimals is None:
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    return f"{number:.{decimals}f}"
