"""How rare a model's bad completions are: P(r < eta) over prompts, down to where no affordable
sample contains a single one.

A measurement is a folder:

    tail.json            settings: all that the samples depend on
    samples.jsonl        one line per completion, appended batch by batch; resumable at any moment
    rewards/NAME.json    the reward of each completion
    figures.json, report.md, tail.png
"""
