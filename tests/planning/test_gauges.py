"""Gauges against a fake driver library: what is shown, and what stays blank, when NVML refuses."""

from __future__ import annotations

import threading
import time
from collections import namedtuple

import pytest

from avatar.hardware.inventory import probe
from avatar.planning import gauges as module
from avatar.planning.gauges import Gauges
from avatar.planning.planner import plan
from avatar.preset import load_preset

MIB = 2**20
READ = """
from avatar.planning import gauges
gauges.FRESH_S = gauges.REOPEN_S = -1.0  # every read is a new one
from avatar.planning.gauges import Gauges
"""


@pytest.mark.parametrize("num_gpus", [1, 4, 8])
def test_ours_others_peak_and_the_rest_per_gpu(with_driver, num_gpus):
    code = (
        READ
        + """
me, last = os.getpid(), len(os.environ["FAKE_NVML_GPUS"].split(",")) - 1
gauges, result = Gauges(), []
for mib in (3000, 5000, 1000):
    os.environ["FAKE_NVML_PROCESSES"] = f"{last}:{me}:{mib},{last}:1:700"
    result.append(gauges.read().as_dict())
gauges.reset_peak()
result.append(gauges.read().as_dict())
"""
    )
    readings = with_driver(code, [24564] * num_gpus)
    for reading, ours, peak in zip(readings, (3000, 5000, 1000, 1000), (3000, 5000, 5000, 1000)):
        assert len(reading["gpus"]) == num_gpus
        gpu = reading["gpus"][-1]
        assert gpu["ours_bytes"] == ours * MIB
        assert gpu["others_bytes"] == 700 * MIB
        assert gpu["used_bytes"] == (ours + 700) * MIB
        assert gpu["peak_bytes"] == peak * MIB
        assert gpu["total_bytes"] == 24564 * MIB
        assert gpu["utilization_percent"] == 40 + num_gpus - 1
        assert gpu["temperature_c"] == 60 + num_gpus - 1
        assert gpu["planned_bytes"] is None
        for idle in reading["gpus"][:-1]:
            assert (idle["ours_bytes"], idle["others_bytes"]) == (0, 0)


def test_children_count_as_ours_and_other_roots_do_not(with_driver):
    code = (
        READ
        + """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
os.environ["FAKE_NVML_PROCESSES"] = f"0:{child.pid}:100"
result = [Gauges(roots).read().gpus[0].ours_bytes for roots in (None, [child.pid], [1 << 30])]
child.communicate(b"\\n")
"""
    )
    assert with_driver(code, [24564]) == [100 * MIB, 100 * MIB, 0]


@pytest.mark.parametrize(
    ("function", "blank"),
    [
        ("nvmlDeviceGetUtilizationRates", {"utilization_percent"}),
        ("nvmlDeviceGetTemperatureV", {"temperature_c"}),
        ("nvmlDeviceGetName", {"name"}),
        ("nvmlDeviceGetMemoryInfo_v2", {"used_bytes", "used_peak_bytes", "others_bytes", "total_bytes"}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", {"ours_bytes", "others_bytes", "peak_bytes"}),
    ],
)
def test_one_refused_question_blanks_its_own_field_alone(with_driver, function, blank):
    reading = with_driver(
        READ + "result = Gauges().read().as_dict()", [24564] * 4, errors=f"{function}@1=999"
    )
    for gpu in reading["gpus"]:
        empty = {key for key, value in gpu.items() if value is None} - {"planned_bytes"}
        assert empty == (blank if gpu["index"] == 1 else set())


def test_a_lost_gpu_keeps_its_row_and_comes_back(with_driver):
    code = (
        READ
        + """
gauges, result = Gauges(), []
for errors in ("", "*@0=15", ""):
    os.environ["FAKE_NVML_ERRORS"] = errors
    result.append([gpu["total_bytes"] for gpu in gauges.read().as_dict()["gpus"]])
"""
    )
    full = [24564 * MIB] * 2
    assert with_driver(code, [24564] * 2) == [full, [None, full[1]], full]


def test_an_error_that_stays_is_logged_once_and_does_not_pile_up(with_driver):
    code = (
        READ
        + """
import logging
reported = []
keep = logging.Handler()
keep.emit = reported.append
logging.getLogger("avatar").addHandler(keep)
gauges = Gauges()
for _ in range(5):
    gauges.read()
result = [len(reported), reported[0].getMessage(), len(gauges._driver.cards[0].errors)]
"""
    )
    num_reported, line, num_kept = with_driver(code, [24564], errors="nvmlDeviceGetUtilizationRates=3")
    assert (num_reported, num_kept) == (1, 1)
    assert line.startswith("GPU 0: NVML gives no utilisation")


def test_a_driver_that_appears_later_is_found(with_driver):
    code = (
        READ
        + """
gauges = Gauges()
before = gauges.read()
os.environ["FAKE_NVML_ERRORS"] = ""
result = [len(before.gpus), before.no_gpu_reason, len(gauges.read().gpus)]
gauges.close()
result.append(len(gauges.read().gpus))
"""
    )
    num_before, reason, num_after, num_reopened = with_driver(code, [24564], errors="nvmlInitWithFlags=9")
    assert (num_before, num_after, num_reopened) == (0, 1, 1)
    assert "not loaded" in reason


def test_hidden_processes_leave_ours_blank_but_show_what_is_used(with_driver):
    code = READ + "result = Gauges().read().as_dict()['gpus'][0]"
    gpu = with_driver(code, [24564], processes="0:77:9000", FAKE_NVML_HIDES_PROCESSES="1")
    assert gpu["used_bytes"] == 9000 * MIB
    assert gpu["ours_bytes"] is None
    assert gpu["others_bytes"] is None


def test_numbers_of_processes_that_are_not_here_may_be_ours(with_driver):
    gone = 2**30 + 7  # no process has such a number
    code = READ + "result = Gauges().read().as_dict()['gpus']"
    foreign, known, mixed = with_driver(
        code, [24564] * 3, processes=f"0:{gone}:9000,1:1:700,2:{gone}:500,2:1:100"
    )
    assert (foreign["ours_bytes"], foreign["others_bytes"], foreign["peak_bytes"]) == (None, None, None)
    assert foreign["used_peak_bytes"] == 9000 * MIB
    assert (known["ours_bytes"], known["others_bytes"]) == (0, 700 * MIB)
    assert mixed["ours_bytes"] is None


def test_an_older_driver_tells_its_temperature(with_driver):
    code = READ + "result = Gauges().read().as_dict()['gpus'][0]['temperature_c']"
    assert with_driver(code, [24564], errors="nvmlDeviceGetTemperatureV=13") == 50


def test_without_a_driver_the_host_alone(monkeypatch):
    monkeypatch.setattr(module, "open_driver", lambda: module.Driver(None, (), "No driver.", is_open=False))
    reading = Gauges().read()
    assert reading.gpus == ()
    assert reading.no_gpu_reason == "No driver."
    assert 0 < reading.host.ram_used_bytes < reading.host.ram_total_bytes
    assert reading.host.ours_bytes > 10 * MIB
    assert reading.host.planned_bytes is None


def test_the_plan_shows_beside_what_is_measured():
    gauges = Gauges()
    planned = plan(load_preset("cpu-preview"), probe())
    gauges.set_plan(planned)
    assert gauges.read().host.planned_bytes == planned.host.peak_bytes
    gauges.set_plan(None)
    assert gauges.read().host.planned_bytes is None


def test_cpu_share_is_that_of_the_time_between_readings(monkeypatch):
    times = namedtuple("times", "user system idle iowait guest")
    clock = iter([times(10, 5, 100, 1, 0), times(13, 6, 104, 3, 1), times(13, 6, 104, 3, 1)])
    monkeypatch.setattr(module.psutil, "cpu_times", lambda: next(clock))
    monkeypatch.setattr(module, "FRESH_S", -1.0)
    gauges = Gauges()
    assert gauges.read().host.cpu_percent == 40.0  # 3 + 1 of 10; the guest's second lies within user
    assert gauges.read().host.cpu_percent == 40.0  # no time has passed: the last share stands


def test_many_threads_share_one_reading(monkeypatch):
    reads = []
    gauges = Gauges()
    one_read = gauges._read
    monkeypatch.setattr(gauges, "_read", lambda: (reads.append(1), time.sleep(0.05), one_read())[2])
    threads = [threading.Thread(target=gauges.read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1


def test_peaks_of_host_and_pinned_memory_until_the_next_reset(monkeypatch):
    monkeypatch.setattr(module, "FRESH_S", -1.0)
    held = iter([None, 3 * MIB, 9 * MIB, 5 * MIB, None, 2 * MIB])
    sizes = iter([50, 70, 40, 60, 30, 20])
    monkeypatch.setattr(module, "own_processes", lambda roots: {1})
    monkeypatch.setattr(module, "_resident_bytes", lambda pid: next(sizes) * MIB)
    gauges = Gauges(pinned=lambda: next(held))
    read = [gauges.read().host for _ in range(5)]
    assert [host.ours_bytes // MIB for host in read] == [50, 70, 40, 60, 30]
    assert [host.peak_bytes // MIB for host in read] == [50, 70, 70, 70, 70]
    assert [host.pinned_bytes for host in read] == [None, 3 * MIB, 9 * MIB, 5 * MIB, None]
    assert [host.pinned_peak_bytes for host in read] == [None, 3 * MIB, 9 * MIB, 9 * MIB, 9 * MIB]
    gauges.reset_peak()
    last = gauges.read().host
    assert (last.peak_bytes, last.pinned_peak_bytes) == (20 * MIB, 2 * MIB)


def test_the_cards_own_peak_is_reported_where_processes_are_hidden(with_driver):
    code = (
        READ
        + """
gauges, result = Gauges(), []
for mib in (3000, 9000, 4000):
    os.environ["FAKE_NVML_PROCESSES"] = f"0:77:{mib}"
    reading = gauges.read().gpus[0]
    result.append([reading.peak_bytes, reading.used_peak_bytes])
"""
    )
    read = with_driver(code, [24564], FAKE_NVML_HIDES_PROCESSES="1")
    assert read == [[None, 3000 * MIB], [None, 9000 * MIB], [None, 9000 * MIB]]
