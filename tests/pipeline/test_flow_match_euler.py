"""The schedule against the golden streams and the published timesteps."""

from __future__ import annotations

import pytest
import torch

from avatar.pipeline.flow_match_euler import Schedule
from tests.pipeline.streams import NAMES, Stream


@pytest.mark.parametrize("name", NAMES)
def test_golden_timesteps_and_sigmas(name):
    stream = Stream.load(name)
    schedule = Schedule.flow_match(stream.settings["num_steps"], stream.settings["shift"])
    torch.testing.assert_close(torch.tensor(schedule.timesteps), stream.tensors["timesteps"])
    torch.testing.assert_close(torch.tensor(schedule.sigmas), stream.tensors["sigmas"])


def test_published_four_steps():
    assert [round(t, 2) for t in Schedule.flow_match(4).timesteps] == [1000.0, 857.69, 602.15, 8.93]


@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.5])
def test_any_schedule_falls_from_noise_to_none(num_steps, shift):
    schedule = Schedule.flow_match(num_steps, shift)
    assert schedule.num_steps == num_steps
    assert schedule.sigmas[0] == pytest.approx(1.0)
    assert schedule.sigmas[-1] == 0.0
    assert list(schedule.sigmas) == sorted(schedule.sigmas, reverse=True)


def test_a_constant_velocity_leads_from_noise_to_the_picture():
    schedule = Schedule.flow_match(4)
    noise, picture = torch.randn(2, 16)
    latents = noise
    for step in range(schedule.num_steps):
        latents = schedule.advance(latents, noise - picture, step)
    torch.testing.assert_close(latents, picture, rtol=1e-5, atol=1e-5)
