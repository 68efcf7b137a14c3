from . import core as core
from . import data as data
from . import decoding as decoding
from . import evaluation as evaluation
from . import fitting as fitting
from . import models as models
from . import redteam as redteam
from . import serving as serving
from . import training as training
from . import utils as utils
from .core.backtracking import Backtracking as Backtracking
from .core.boundary import Boundary as Boundary
from .core.embedding_spec import EmbeddingSpec as EmbeddingSpec
from .decoding.completion import Completion as Completion
from .decoding.decoder import SASADecoder as SASADecoder
from .decoding.generate import generate as generate
from .decoding.margins import score as score
from .decoding.margins import trace as trace
from .decoding.output import SASAOutput as SASAOutput
from .decoding.processor import SASALogitsProcessor as SASALogitsProcessor
from .fitting.hub import pull_from_hub as pull_from_hub
from .fitting.hub import push_to_hub as push_to_hub
from .models.embedding import embed as embed
from .models.load import load as load

__version__: str
