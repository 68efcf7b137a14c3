from .admission import register as register
from .offline import LLM as LLM
from .options import engine_options as engine_options
