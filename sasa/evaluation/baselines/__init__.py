"""Other people's ways to the same end, each a small class, on the same model, prompts and candidates: what SASA stands beside.

Their equations are their papers'; the candidates, what top-k and top-p leave of the model's own distribution, are the same for
all, where a paper truncates before it reweights. None of them needs a boundary.
"""
