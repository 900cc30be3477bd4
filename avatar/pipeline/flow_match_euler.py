"""Flow-match Euler: the noise levels of the denoising steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A noise schedule. timesteps: one flow time in 0..1000 per step, falling. sigmas: one more, to 0."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @classmethod
    def flow_match(cls, num_steps: int, shift: float = 3.0) -> Schedule:
        """The unmodified timesteps of diffusers' FlowMatchEulerDiscreteScheduler."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(num_steps)
        return cls(tuple(scheduler.timesteps.tolist()), tuple(scheduler.sigmas.tolist()))

    def advance(self, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
        """One Euler step from sigmas[step] to sigmas[step + 1]."""
        return latents + (self.sigmas[step + 1] - self.sigmas[step]) * velocity
