"""Gauges of GPUs and host, and the plan as bars before anything runs."""

from __future__ import annotations

from html import escape

from avatar.hardware.inventory import Inventory
from avatar.planning.gauges import GpuReading, HostReading, Reading
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import DevicePlan, MemoryItem, Plan
from avatar.ui.html import gib, meter, share, tag
from avatar.ui.language import Language, item_words, text

NUM_COLOURS = 6  # one per large item; the last is shared by all other items


def render_gauges(reading: Reading, language: Language) -> str:
    """One row per GPU, then the host."""
    rows = [_gpu_row(gpu, language) for gpu in reading.gpus]
    if not reading.gpus:
        rows.append(tag("p", escape(text("no_gpu", language)), class_="muted", title=reading.no_gpu_reason))
    rows += _host_rows(reading.host, language, has_pinned=bool(reading.gpus))
    return tag("div", "".join(rows), class_="gauges")


def render_machine(inventory: Inventory, language: Language) -> str:
    """One line for the page's head: what this machine is."""
    if inventory.gpus:
        names = [gpu.name or "GPU" for gpu in inventory.gpus]
        kinds = dict.fromkeys(names)
        words = ", ".join(f"{names.count(kind)} × {kind}" for kind in kinds)
    else:
        words = f"{text('cpu', language)} · {text('cores', language, count=inventory.host.num_cores)}"
    return tag("span", escape(words), class_="machine-chip", title=words)


def render_plan(plan: Plan | None, language: Language, refusal: str = "", video: str = "") -> str:
    """A stacked bar per GPU, then the host; for the preview engine, a sentence.

    refusal: why the preset cannot run. video: the video's size.
    """
    parts = [tag("h3", escape(text("plan", language)))]
    if video:
        words = tag("b", escape(text("gives", language))) + " " + escape(video)
        parts.append(tag("p", words, class_="plan-video"))
    if plan is not None and plan.engine == "preview":
        words = text("plan_none", language, ram=gib(plan.host.peak_bytes))
        parts.append(tag("p", escape(words), class_="muted"))
    elif plan is not None:
        colours = _colours(plan)
        parts += [_device(device, colours, language) for device in plan.devices]
        if plan.placement != ALL_ON_GPU:
            parts.append(tag("p", escape(_waiting(plan.placement, language)), class_="muted"))
        if plan.is_estimate:
            parts.append(tag("p", escape(text("plan_estimate", language)), class_="muted"))
    if refusal:
        words = tag("strong", escape(text("plan_refused", language))) + " " + escape(refusal)
        parts.append(tag("p", words, class_="refusal"))
    return tag("div", "".join(parts), class_="plan")


def _gpu_row(gpu: GpuReading, language: Language) -> str:
    load = "–" if gpu.utilization_percent is None else f"{gpu.utilization_percent} %"
    heat = "–" if gpu.temperature_c is None else f"{gpu.temperature_c} °C"
    is_known = gpu.ours_bytes is not None  # otherwise nobody knows whose memory it is
    return meter(
        f"GPU {gpu.index}" + (f" · {gpu.name}" if gpu.name else ""),
        f"{gib(gpu.used_bytes)} / {gib(gpu.total_bytes)} GiB · {load} · {heat}",
        _bar(
            gpu.total_bytes,
            ours=gpu.ours_bytes if is_known else None,
            others=gpu.others_bytes if is_known else gpu.used_bytes,
            planned=gpu.planned_bytes,
            peak=gpu.peak_bytes if is_known else gpu.used_peak_bytes,
        ),
        _legend(
            (
                ("ours", text("ours", language), gpu.ours_bytes),
                ("others", text("others", language), gpu.others_bytes),
                ("planned", text("planned", language), gpu.planned_bytes),
                ("peak", text("peak", language), gpu.peak_bytes)
                if is_known
                else ("peak", text("peak_card", language), gpu.used_peak_bytes),
            )
        ),
    )


def _host_rows(host: HostReading, language: Language, has_pinned: bool) -> list[str]:
    total, others = host.ram_total_bytes, max(host.ram_used_bytes - host.ours_bytes, 0)
    cpu = tag("i", class_="ours", style=f"width:{host.cpu_percent:.0f}%")
    ram = _bar(total, ours=host.ours_bytes, others=others, planned=host.planned_bytes, peak=host.peak_bytes)
    figures = (
        ("ours", text("ours", language), host.ours_bytes),
        ("others", text("others", language), others),
        ("planned", text("planned", language), host.planned_bytes),
        ("peak", text("peak", language), host.peak_bytes),
    )
    used = f"{gib(host.ram_used_bytes)} / {gib(total)} GiB"
    rows = [
        meter(text("cpu", language), f"{host.cpu_percent:.0f} %", cpu),
        meter(text("ram", language), used, ram, _legend(figures)),
    ]
    if has_pinned or host.pinned_bytes:
        peak = (("peak", text("peak", language), host.pinned_peak_bytes),)
        bar = _bar(total, ours=host.pinned_bytes, peak=host.pinned_peak_bytes)
        rows.append(
            meter(
                text("pinned", language), f"{gib(host.pinned_bytes)} / {gib(total)} GiB", bar, _legend(peak)
            )
        )
    return rows


def _bar(total: int | None, **sizes: int | None) -> str:
    """A bar of our memory and other processes', with marks for the planned and the peak memory."""
    marks = {"planned", "peak"}
    fills = [
        tag("i", class_=name, style=f"width:{share(size, total)}")
        for name, size in sizes.items()
        if name not in marks
    ]
    lines = [
        tag("b", class_=name, style=f"left:{share(size, total)}")
        for name, size in sizes.items()
        if name in marks and size
    ]
    return "".join(fills + lines)


def _legend(figures: tuple[tuple[str, str, int | None], ...]) -> str:
    """The legend. figures: CSS class, text and bytes of each."""
    entries = (tag("li", escape(f"{words} {gib(size)}"), class_=kind) for kind, words, size in figures)
    return tag("ul", "".join(entries), class_="legend")


def _colours(plan: Plan) -> dict[str, int]:
    """One colour per large item, the same on every device."""
    most: dict[str, int] = {}
    for item in (item for device in plan.devices for item in device.peak_items):
        most[item.name] = max(most.get(item.name, 0), item.num_bytes)
    largest = sorted(most, key=lambda name: -most[name])
    return {name: min(number, NUM_COLOURS - 1) for number, name in enumerate(largest)}


def _device(device: DevicePlan, colours: dict[str, int], language: Language) -> str:
    """What others hold, then the plan's items, on the scale of the device's memory; a mark at its end."""
    total, free = device.total_bytes or 0, device.available_bytes
    held = max(total - free, 0) if free is not None else 0
    scale = max(total, held + device.peak_bytes) or 1
    items = sorted(device.peak_items, key=lambda item: colours[item.name])
    bar = tag("i", class_="others", style=f"width:{share(held, scale)}") if held else ""
    for item in items:
        bar += tag("i", class_=f"item-{colours[item.name]}", style=f"width:{share(item.num_bytes, scale)}")
    if scale > total:
        bar += tag("b", class_="limit", style=f"left:{share(total, scale)}")
    label = text("ram", language) if device.index is None else device.label
    words = text(
        "plan_of_free", language, need=gib(device.peak_bytes), free=gib(free), total=gib(device.total_bytes)
    )
    below = tag("ul", _items(items, held, colours, language), class_="legend")
    if device.shortfall_bytes:
        below += tag(
            "p", escape(text("plan_short", language, short=gib(device.shortfall_bytes))), class_="short"
        )
    return meter(label, words, bar, below, data_short="yes" if device.shortfall_bytes else None)


def _waiting(placement: Placement, language: Language) -> str:
    """What is offloaded to pinned memory."""
    layers = placement.layers_on_host
    kept = "waiting_blocks" if placement.layers_in_blocks else "waiting_layers"
    what = [text(kept, language, count=layers)] if layers else []
    what += [text("waiting_rings", language)] if placement.rings_on_host else []
    what += [text("waiting_models", language)] if placement.side_models_on_host else []
    waiting = text("waiting", language, what=text("comma", language).join(what))
    return f"{waiting} {text('speech_on_cpu', language)}" if placement.speech_on_cpu else waiting


def _items(items: list[MemoryItem], held: int, colours: dict[str, int], language: Language) -> str:
    """The bar's legend: each large item, the small ones together, and what others hold."""
    last = NUM_COLOURS - 1
    entries = [
        tag(
            "li",
            escape(f"{item_words(item.name, language)} {gib(item.num_bytes)}"),
            class_=f"item-{colours[item.name]}",
        )
        for item in items
        if colours[item.name] < last
    ]
    rest = [item for item in items if colours[item.name] == last]
    if rest:
        words = f"{text('plan_rest', language)} {gib(sum(item.num_bytes for item in rest))}"
        names = ", ".join(f"{item_words(item.name, language)} {gib(item.num_bytes)}" for item in rest)
        entries.append(tag("li", escape(words), class_=f"item-{last}", title=names))
    if held:
        entries.append(tag("li", escape(f"{text('others', language)} {gib(held)}"), class_="others"))
    return "".join(entries)
