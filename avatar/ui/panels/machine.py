"""Gauges of GPUs and host, and the plan as bars before anything runs."""

from __future__ import annotations

from html import escape

from avatar.memory.gauges import GpuReading, HostReading, Reading
from avatar.memory.inventory import Inventory
from avatar.memory.plan import DevicePlan, Plan, describe
from avatar.ui.i18n import Language, text
from avatar.ui.panels import tag

GB = 1e9
NUM_COLOURS = 6  # plan items beyond these share the last colour


def render_gauges(reading: Reading, language: Language) -> str:
    """One row for each GPU, then the host."""
    rows = [_gpu_row(gpu, language) for gpu in reading.gpus]
    if not reading.gpus:
        rows.append(tag("p", escape(text("no_gpu", language)), class_="muted", title=reading.no_gpu_reason))
    rows += _host_rows(reading.host, language)
    return tag("div", "".join(rows), class_="gauges")


def render_machine(inventory: Inventory, language: Language) -> str:
    """One line for the page's head: what this machine is."""
    if inventory.gpus:
        names = [gpu.name or "GPU" for gpu in inventory.gpus]
        kinds = dict.fromkeys(names)
        words = ", ".join(f"{names.count(kind)} × {kind}" for kind in kinds)
    else:
        words = f"{text('cpu', language)} · {text('cores', language, count=inventory.host.num_cores)}"
    return tag("span", escape(words), class_="machine-chip")


def render_plan(plan: Plan | None, language: Language, refusal: str = "") -> str:
    """A stacked bar for each GPU; for the preview, a sentence. refusal: why it does not fit."""
    parts = [tag("h3", escape(text("plan", language)))]
    if plan is not None and plan.engine == "preview":
        parts.append(tag("p", escape(text("plan_none", language)), class_="muted"))
    elif plan is not None:
        parts += [_device(device, language) for device in plan.devices]
    if refusal:
        words = tag("strong", escape(text("plan_not_fit", language))) + " " + escape(refusal)
        parts.append(tag("p", words, class_="refusal"))
    return tag("div", "".join(parts), class_="plan")


def _gb(num_bytes: int | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / GB:.1f}"


def _share(part: int | None, total: int | None) -> float:
    return 100 * min(part / total, 1.0) if part and total else 0.0


def _gpu_row(gpu: GpuReading, language: Language) -> str:
    figures = [
        f"{text(key, language)} {_gb(value)}"
        for key, value in (
            ("ours", gpu.ours_bytes),
            ("others", gpu.others_bytes),
            ("planned", gpu.planned_bytes),
            ("peak", gpu.peak_bytes),
        )
        if value is not None
    ]
    load = "–" if gpu.utilization_percent is None else f"{gpu.utilization_percent} %"
    heat = "–" if gpu.temperature_c is None else f"{gpu.temperature_c} °C"
    ours = _share(gpu.ours_bytes if gpu.ours_bytes is not None else gpu.used_bytes, gpu.total_bytes)
    bar = tag("i", class_="ours", style=f"width:{ours:.1f}%")
    bar += tag("i", class_="others", style=f"width:{_share(gpu.others_bytes, gpu.total_bytes):.1f}%")
    for mark, value in (("planned", gpu.planned_bytes), ("peak", gpu.peak_bytes)):
        if value:
            bar += tag("b", class_=mark, style=f"left:{_share(value, gpu.total_bytes):.1f}%")
    title = f"GPU {gpu.index}" + (f" · {gpu.name}" if gpu.name else "")
    return _row(
        title,
        f"{_gb(gpu.used_bytes)} / {_gb(gpu.total_bytes)} GB · {load} · {heat}",
        bar,
        " · ".join(figures),
    )


def _host_rows(host: HostReading, language: Language) -> list[str]:
    others = max(host.ram_used_bytes - host.ours_bytes, 0)
    ram = tag("i", class_="ours", style=f"width:{_share(host.ours_bytes, host.ram_total_bytes):.1f}%")
    ram += tag("i", class_="others", style=f"width:{_share(others, host.ram_total_bytes):.1f}%")
    used = f"{_gb(host.ram_used_bytes)} / {_gb(host.ram_total_bytes)} GB"
    ours = f"{text('ours', language)} {_gb(host.ours_bytes)}"
    cpu = tag("i", class_="ours", style=f"width:{host.cpu_percent:.0f}%")
    return [
        _row(text("cpu", language), f"{host.cpu_percent:.0f} %", cpu),
        _row(text("ram", language), f"{used} · {ours}", ram),
    ]


def _row(title: str, figures: str, bar: str, more: str = "") -> str:
    head = tag("span", escape(title), class_="name") + tag("span", escape(figures), class_="figure")
    below = tag("small", escape(more)) if more else ""
    return tag(
        "div", tag("div", head, class_="row-head") + tag("div", bar, class_="meter") + below, class_="gauge"
    )


def _device(device: DevicePlan, language: Language) -> str:
    total = max(device.total_bytes or 0, device.peak_bytes) or 1
    bars, legend = [], []
    for number, item in enumerate(device.peak_items):
        colour = min(number, NUM_COLOURS - 1)
        bars.append(tag("i", class_=f"item-{colour}", style=f"width:{_share(item.num_bytes, total):.1f}%"))
        legend.append(
            tag("li", escape(f"{describe(item.name)} {_gb(item.num_bytes)}"), class_=f"item-{colour}")
        )
    figures = f"{_gb(device.peak_bytes)} / {_gb(device.total_bytes)} GB"
    label = text("ram", language) if device.index is None else device.label
    row = _row(label, figures, "".join(bars))
    return row + tag("ul", "".join(legend), class_="legend")
