"""lm-evaluation-harness runs its generating tasks on a steered model."""

from __future__ import annotations

import json

import pytest
import tiny

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sasa.evaluation.integrations.lm_eval import SASALM
from sasa.models.load import load

TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def written(tiny_folder, tmp_path_factory):
    """A function from a model of the harness to what it wrote."""
    folder = tmp_path_factory.mktemp("task")
    data = folder / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"q": f"question {'?' * i}", "a": "x"}) + "\n" for i in range(5))
    )
    (folder / "own.yaml").write_text(TASK.format(data=data))

    def write(model):
        results = simple_evaluate(
            model, tasks=["own"], task_manager=TaskManager(include_path=str(folder))
        )
        return [sample["resps"][0][0] for sample in results["samples"]["own"]]

    return write


@pytest.mark.slow
def test_beta_0_is_the_model_on_its_own(written, tiny_folder, tmp_path):
    model, tokenizer = load(tiny_folder, "cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    plain, steered = (
        # "cuda:0" is what the harness says where the user says nothing
        written(
            SASALM(str(tiny_folder), str(tmp_path / "boundary"), beta, device=device, batch_size=2)
        )
        for beta, device in ((0, "cpu"), (5, "cuda:0"))
    )
    assert plain == written(HFLM(model, tokenizer=tokenizer, batch_size=2))
    assert steered != plain
