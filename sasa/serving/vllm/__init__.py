"""SASA inside vLLM's engine. The only package that imports vLLM, of which it relies on what `RELIES_ON` in `served` names.

A candidate is a draft of length one: the engine reads it at the place behind the text, as it would read a speculative
token, and takes it or leaves it. vLLM knows "drafts and no bonus token" from diffusion models, so that taking back what
was read, steps without output, preemption and the prefix cache are the engine's own affair. What is ours:

    a model class     vLLM's own decoder, which also keeps the states of the boundaries' layers
    a sampler         in place of vLLM's: which candidate is read next, and which one has won (`sasa.serving.slots`)
    a scheduler       that expects no token beyond the draft
    admission         requests that cannot be done as asked are refused in the front end, before they reach the engine

vLLM has two model runners. The second, the default on GPUs, takes all of these through its own extension points; what is
chosen stays on the device. The first, which the CPU build uses, needs a worker of ours; it has the winner and the next
candidate read in one pass.

    LLM("…", boundary="toxicity").complete(["…"], beta=4.0)      offline
    sasa serve … --boundary toxicity                              vLLM's OpenAI-compatible server
"""

import lazy_loader

try:
    import vllm as _vllm  # noqa: F401
except ImportError as error:
    raise ImportError(
        "serving needs vLLM, in an environment of its own: pip install 'sasa-decoding[vllm]', or on a CPU see `make vllm`"
    ) from error

# every process of vLLM's imports this package: its names are imported when they are first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
