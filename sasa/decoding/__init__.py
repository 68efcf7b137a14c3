"""Sampling under a boundary: `generate()`, the decoder and its loop, the logits processor, look-ahead, tracing."""
