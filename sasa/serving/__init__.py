"""The rule inside engines that serve: vLLM, and fits and benchmarks spread by Ray.

`requests` says what a request may ask for, `slots` chooses tokens for requests that come and go; neither knows an
engine. `vllm` and `ray` are the only files that import what they are named after.
"""
