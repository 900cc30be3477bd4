"""Live Avatar: a portrait and speech become a talking video that streams while it is made."""

__version__ = "0.1.0"
