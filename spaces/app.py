"""The page of `sasa demo` as a Hugging Face Space."""

import os

import sasa
from sasa.core.settings import DEFAULT_MODEL
from sasa.demo.page import launch
from sasa.demo.studio import Studio

name = os.environ.get("SASA_MODEL")  # the default model where the Space has no such variable
model, tokenizer = sasa.load(name)
studio = Studio(
    model, tokenizer, tuple(filter(None, os.environ.get("SASA_BOUNDARIES", "").split(",")))
)
launch(studio, name or DEFAULT_MODEL, "0.0.0.0", None, share=False, open_=False)
