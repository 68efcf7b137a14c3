"""The rule: settings, boundaries, candidates, values, backtracking. It needs torch and safetensors, and no model."""
