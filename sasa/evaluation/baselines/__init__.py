"""Methods of other authors that SASA is compared with, on the same model, prompts and candidates.

The equations are those of the papers. The candidates, which top-k and top-p leave of the model's
own distribution, are the same for all methods that reweight truncated distributions. None needs a
boundary.
"""
