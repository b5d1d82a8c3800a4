"""How the console's templates show values."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from vllm_edit.instant import in_utc
from vllm_edit.names import short
from vllm_edit.registry.servers import AcknowledgedRecord

_LONGEST = 20_000  # characters of JSON on a page


def time(value: datetime | str | None) -> Markup | str:
    """A time in UTC, to the second; `value` may be ISO text."""
    if value is None:
        return "–"
    try:
        moment = in_utc(datetime.fromisoformat(value) if isinstance(value, str) else value)
    except ValueError:
        return str(value)
    exact = moment.isoformat()
    return Markup('<time datetime="{}">{}</time>').format(exact, f"{moment:%Y-%m-%d %H:%M:%S}")


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + " %"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:,.0f} ms"


def pretty(value: Any) -> str:
    """JSON with indents. A long text is cut: a report may hold the answers to thousands of questions."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … {len(text) - _LONGEST:,} characters more"


def followed(found: AcknowledgedRecord) -> str:
    """The servers that follow a change, and those that do not, in one sentence."""
    count = len(found.servers)
    parts = [f"{count} {'server follows' if count == 1 else 'servers follow'} after {found.seconds * 1000:.0f} ms"]
    if found.missing:
        parts.append(f"not yet: {', '.join(found.missing)}")
    if found.silent:
        parts.append(f"without a heartbeat, and perhaps on an older state: {', '.join(found.silent)}")
    return "; ".join(parts) + "."


FILTERS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "time": time,
        "short": short,
        "number": number,
        "percent": percent,
        "milliseconds": milliseconds,
        "pretty": pretty,
    }
)
