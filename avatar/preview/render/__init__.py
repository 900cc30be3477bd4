"""From a portrait, its face, and one frame's articulation and pose to that frame's pixels."""

from avatar.preview.render.frame_size import frame_size, framed
from avatar.preview.render.renderer import Renderer

__all__ = ["Renderer", "frame_size", "framed"]
