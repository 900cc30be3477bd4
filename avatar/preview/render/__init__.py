"""Render a frame's pixels from a portrait, its face, and the frame's articulation and pose."""

from avatar.preview.render.frame_size import frame_size, framed, framed_with_all
from avatar.preview.render.renderer import Renderer

__all__ = ["Renderer", "frame_size", "framed", "framed_with_all"]
