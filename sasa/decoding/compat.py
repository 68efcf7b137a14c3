"""Workarounds for what transformers does not do."""

from __future__ import annotations

import inspect

from transformers.generation.streamers import BaseStreamer


def streamer_of(custom_generate: object) -> BaseStreamer | None:
    """The streamer that was given to the `generate()` which is calling a `custom_generate` callable.

    transformers (5.23) does not hand it to a callable. Without it nothing would be streamed, and
    whoever reads the stream would wait for its end forever.
    """
    frame = inspect.currentframe()
    while frame is not None:
        is_generate = frame.f_code.co_name == "generate"
        if is_generate and frame.f_locals.get("custom_generate") is custom_generate:
            return frame.f_locals.get("streamer")
        frame = frame.f_back
    return None
