"""AUC of a boundary, and of scorers, on RealToxicityPrompts segments that it was not fitted on.

python benchmarks/auc.py --prompts ../shared/data/rtp/prompts.jsonl --scorer profanity
"""

from __future__ import annotations

import argparse

from sklearn.metrics import average_precision_score, roc_auc_score

import sasa
from sasa.evaluation.scorers import scorer
from sasa.fitting import Corpus


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", required=True, help="RealToxicityPrompts rows, JSONL")
    parser.add_argument(
        "--rows", default="3000:4000", help="START:STOP (the bundled boundary is fitted on 0:2500)"
    )
    parser.add_argument("--model")
    parser.add_argument("--boundary", default="toxicity")
    parser.add_argument(
        "--scorer", action="append", default=[], help="as for sasa bench; repeat it"
    )
    args = parser.parse_args()
    judges = [scorer(name) for name in args.scorer]
    model, tokenizer = sasa.load(args.model)
    boundary = sasa.Boundary.load(args.boundary, model=model)
    kinds = {"prompts and continuations": ("prompt", "continuation")}
    if (
        boundary.embedding.span == "response"
    ):  # else the prompt would be judged by its continuation's label
        kinds["continuations after their prompts"] = ("pair",)
    for name, segments in kinds.items():
        examples = list(
            Corpus("rtp", path=args.prompts, rows=args.rows, segments=segments).examples()
        )
        unsafe = [e.score >= 0.5 for e in examples]
        margins = boundary.score(model, tokenizer, [e.text for e in examples], progress=True).cpu()
        toxicity = {"the boundary": -margins.numpy()}
        if segments != ("pair",):  # scorers judge texts as they stand
            toxicity |= {
                judge.name: judge.score([str(e.text) for e in examples]) for judge in judges
            }
        print(f"{name}: {len(examples)} texts, {sum(unsafe)} unsafe")
        for judge, found in toxicity.items():
            print(
                f"  {judge}: AUC {roc_auc_score(unsafe, found):.4f}, "
                f"average precision {average_precision_score(unsafe, found):.4f}"
            )


if __name__ == "__main__":
    main()
