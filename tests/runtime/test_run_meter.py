"""What a run takes, measured by its own process against a fake driver library."""

from __future__ import annotations

import time
from types import SimpleNamespace

from avatar.hardware.inventory import Inventory, probe
from avatar.planning import gauges
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.preset import load_preset
from avatar.runtime import run_meter

MIB = 2**20
READ = """
from dataclasses import asdict
from avatar.planning import gauges
from avatar.runtime import run_meter
gauges.FRESH_S = -1.0  # every read is a new one
run_meter.LOOK_S = 1e6  # no looks but those of the test
from avatar.runtime.run_meter import RunMeter
"""


def test_peaks_of_the_gpus_that_a_run_used(with_driver):
    code = (
        READ
        + """
me, watch, result = os.getpid(), RunMeter(), []
watch.restart()
for mib in (3000, 5000, 1000):
    os.environ["FAKE_NVML_PROCESSES"] = f"1:{me}:{mib},1:1:700,0:1:400"
    result.append(asdict(watch.look()))
watch.restart()
result.append(asdict(watch.use))
"""
    )
    *running, again = with_driver(code, [24564, 24564])
    for use, peak in zip(running, (3000, 5000, 5000)):
        [gpu] = use["gpus"]
        assert (gpu["index"], gpu["peak_bytes"]) == (1, peak * MIB)
        assert gpu["card_peak_bytes"] == (peak + 700) * MIB
        assert gpu["total_bytes"] == 24564 * MIB
        assert use["host_peak_bytes"] > 10 * MIB
        assert use["pinned_peak_bytes"] is None
    assert again["gpus"][0]["peak_bytes"] == 1000 * MIB, "the peak of the run before is forgotten"


def test_hidden_processes_leave_the_cards_peak_alone(with_driver):
    code = READ + "result = asdict(RunMeter().look())"
    [gpu] = with_driver(code, [24564], processes="0:77:9000", FAKE_NVML_HIDES_PROCESSES="1")["gpus"]
    assert (gpu["peak_bytes"], gpu["card_peak_bytes"]) == (None, 9000 * MIB)


def test_without_a_gpu_the_host_is_measured(monkeypatch):
    monkeypatch.setattr(gauges, "open_driver", lambda: gauges.Driver(None, (), "None.", is_open=False))
    use = run_meter.RunMeter(pinned=lambda: 7 * MIB).look()
    assert use.gpus == ()
    assert use.host_peak_bytes > 10 * MIB
    assert (use.pinned_bytes, use.pinned_peak_bytes) == (7 * MIB, 7 * MIB)


def test_it_looks_by_itself(monkeypatch):
    monkeypatch.setattr(run_meter, "LOOK_S", 0.01)
    monkeypatch.setattr(gauges, "FRESH_S", -1.0)
    held = [0]
    watch = run_meter.RunMeter(pinned=lambda: held[0])
    for size in (5, 9, 2):
        held[0] = size
        end = time.monotonic() + 30
        while watch.use.pinned_bytes != size and time.monotonic() < end:
            time.sleep(0.01)
        assert watch.use.pinned_bytes == size
    assert watch.use.pinned_peak_bytes == 9


def test_the_plan_of_a_run_is_its_sources_own_or_the_machines():
    def planned(source: object, name: str) -> Plan | None:
        request = SimpleNamespace(preset=load_preset(name))
        return run_meter.planned(source, request, None, lambda: False)  # type: ignore[arg-type]

    preview = planned(object(), "cpu-preview")
    assert preview is not None
    assert preview.host.peak_bytes == plan(load_preset("cpu-preview"), probe()).host.peak_bytes
    assert (preview.engine, preview.gpus) == ("preview", ())
    assert planned(object(), "auto") is None, "no plan yet"
    own = plan(load_preset("80gb"), Inventory.imagine(1, 80))
    assert planned(SimpleNamespace(plan_for=lambda request, cancelled: own), "auto") is own
