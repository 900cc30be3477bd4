"""What an engine does before its first frame: shown as it changes, with the time that it usually takes."""

from __future__ import annotations

import json

import pytest

from avatar.events import Activity, Phase, Progress
from avatar.runtime import progress
from avatar.runtime.progress import ProgressClock
from avatar.runtime.usual_times import FILE, NUM_KEPT, UsualTimes


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(progress, "time", time)
    return time


def test_the_middle_of_the_last_times_is_the_usual_one(tmp_path):
    times = UsualTimes(tmp_path, "48gb")
    assert times.of(Activity.READING) is None
    for seconds in (90.0, 3.0, 5.0, 4.0, 60.0, 6.0):
        times.took(Activity.READING, seconds)
    again = UsualTimes(tmp_path, "48gb")
    assert again.of(Activity.READING) == 5.0, f"of the last {NUM_KEPT}"
    assert again.of(Activity.COMPILING) is None
    assert UsualTimes(tmp_path, "80gb").of(Activity.READING) is None


def test_presets_do_not_overwrite_one_another(tmp_path):
    one, other = UsualTimes(tmp_path, "48gb"), UsualTimes(tmp_path, "80gb")
    one.took(Activity.READING, 4.0)
    other.took(Activity.READING, 9.0)
    one.took(Activity.COMPILING, 8.0)
    assert json.loads((tmp_path / FILE).read_text()) == {
        "48gb": {"reading": [4.0], "compiling": [8.0]},
        "80gb": {"reading": [9.0]},
    }


def test_what_a_warm_engine_skips_is_not_counted(tmp_path):
    times = UsualTimes(tmp_path, "48gb")
    times.took(Activity.READING, 0.01)
    assert times.of(Activity.READING) is None
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"48gb": 3}', '{"48gb": {"reading": ["soon"]}}', '{"48gb": {"reading": [NaN]}}']
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    times = UsualTimes(tmp_path, "48gb")
    assert times.of(Activity.READING) is None
    times.took(Activity.READING, 4.0)
    assert UsualTimes(tmp_path, "48gb").of(Activity.READING) == 4.0


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    times = UsualTimes(tmp_path / "file", "48gb")
    times.took(Activity.READING, 4.0)
    assert times.of(Activity.READING) == 4.0


def test_each_activity_is_told_and_timed(tmp_path, time):
    UsualTimes(tmp_path, "48gb").took(Activity.READING, 4.0)
    clock = ProgressClock(48, 2, UsualTimes(tmp_path, "48gb"))
    clock.start()
    reported = [clock.progress()]
    for seconds, said in (
        (11.0, Progress(Phase.LOADING, activity=Activity.READING)),
        (0.5, Progress(Phase.LOADING)),  # sent with each heartbeat: changes nothing
        (5.5, Progress(Phase.ENCODING)),
        (2.0, Progress(Phase.GENERATING, activity=Activity.COMPILING)),
    ):
        time.now += seconds
        clock.follow(said)
        reported.append(clock.progress())
    time.now += 3.0
    clock.frame_made()
    reported.append(clock.progress())
    doing = [(one.phase, one.activity, one.usual_s) for one in reported]
    assert doing == [
        (Phase.LOADING, Activity.STARTING, None),
        (Phase.LOADING, Activity.READING, 4.0),
        (Phase.LOADING, Activity.READING, 4.0),
        (Phase.ENCODING, None, None),
        (Phase.GENERATING, Activity.COMPILING, None),
        (Phase.GENERATING, None, None),
    ]
    expected = {"starting": 11.0, "reading": 6.0, "encoding": 2.0, "compiling": 3.0}
    assert clock.activities_s == expected
    assert UsualTimes(tmp_path, "48gb").of(Activity.READING) == 5.0
    assert UsualTimes(tmp_path, "48gb").of(Phase.ENCODING) == 2.0


def test_a_fallback_while_generating_does_not_go_back(tmp_path, time):
    clock = ProgressClock(48, 2, UsualTimes(tmp_path, "48gb"))
    clock.follow(Progress(Phase.GENERATING))
    assert not clock.follow(Progress(Phase.LOADING, activity=Activity.READING))
    assert clock.progress().activity is None


def test_an_engine_that_loads_nothing_tells_phases_alone(time):
    clock = ProgressClock(48, 2)
    assert clock.progress().activity is None
    time.now += 5.0
    assert clock.follow(Progress(Phase.ENCODING))
    clock.frame_made()
    assert clock.activities_s == {}
    assert clock.progress().usual_s is None
