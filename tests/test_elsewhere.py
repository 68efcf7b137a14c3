"""Where people already are: generate()'s custom_generate, pipelines, Inspect AI, and boundaries on the Hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from shell import sasa as command
from transformers import pipeline

import sasa
from sasa import Boundary, SASADecoder

HUB = Path(__file__).parents[1] / "hub"
SAMPLING = dict(
    do_sample=True, temperature=1.0, top_k=9, top_p=0.9, max_new_tokens=8, pad_token_id=tiny.PAD
)


@pytest.fixture
def line(model, tmp_path):
    return tiny.boundary(model).save(tmp_path / "line").parent


@pytest.mark.parametrize("by", ["name", "object", "several"])
def test_a_repository_for_custom_generate(by, model, tokenizer, line, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    boundary = tiny.boundary(model)
    given = {
        "name": str(line),
        "object": boundary,
        "several": [(boundary, 1.0), (tiny.boundary(model, 1), 0.5)],
    }[by]
    same = [(boundary, 1.0), (boundary, 0.5)]
    named = [str(line), f"{line}::0.5"]
    inputs = tokenizer(["The man", "A"], return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    torch.manual_seed(1)
    want = model.generate(
        **inputs,
        **SAMPLING,
        custom_generate=SASADecoder(given if by == "several" else boundary, 3.0),
    )
    torch.manual_seed(1)
    got = model.generate(
        **inputs,
        **SAMPLING,
        custom_generate=str(HUB),
        trust_remote_code=True,
        boundary=given,
        beta=3.0,
        strict=False,
    )
    assert torch.equal(want, got)
    torch.manual_seed(1)
    want = model.generate(**inputs, **SAMPLING, custom_generate=SASADecoder(same, 3.0))
    torch.manual_seed(1)
    got = model.generate(
        **inputs,
        **SAMPLING,
        custom_generate=str(HUB),
        trust_remote_code=True,
        boundary=named,
        beta=3.0,
        strict=False,
    )
    assert torch.equal(want, got)
    torch.manual_seed(1)
    back = dict(boundary=boundary, beta=0.0, backtrack={"threshold": 1e-6, "max_resets": 1})
    out = model.generate(
        **inputs,
        **SAMPLING,
        custom_generate=str(HUB),
        trust_remote_code=True,
        return_dict_in_generate=True,
        **back,
    )
    assert all(row.attempts for row in out.histories)


def test_a_pipeline_with_the_decoder(model, tokenizer):
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    decoder = SASADecoder(tiny.boundary(model), 3.0)
    torch.manual_seed(1)
    (made,) = write("The man", custom_generate=decoder, return_tensors=True, **SAMPLING)
    inputs = tokenizer("The man", return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(1)
    want = model.generate(**inputs, **SAMPLING, custom_generate=decoder)
    assert made["generated_token_ids"] == want[0].tolist()


def test_a_conversation_is_a_prompt(model, tokenizer, monkeypatch):
    boundary = tiny.boundary(model)
    settings = dict(chat=True, seed=1, max_new_tokens=5)
    turns = [{"role": "user", "content": "Hi"}]
    alone = sasa.generate(model, tokenizer, "Hi", boundary, **settings)
    assert sasa.generate(model, tokenizer, turns, boundary, **settings) == alone
    longer = [*turns, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "So?"}]
    both = sasa.generate(model, tokenizer, [longer, "Hi"], boundary, **settings)
    assert [len(rows) for rows in both] == [1, 1]
    prompt = tokenizer.apply_chat_template(longer, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    boundless = sasa.generate(
        model, tokenizer, longer, None, chat=True, do_sample=False, max_new_tokens=5
    )
    want = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=5, pad_token_id=tiny.PAD
    )
    assert boundless[0].tokens == want[0, len(prompt) :].tolist()
    for bad, message in (
        ([turns], "prompt 0 is a conversation: give chat=True"),
        ([[]], "prompt 0 is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            sasa.generate(model, tokenizer, bad, boundary)
    for bad, message in (
        ([{"role": "user"}], "messages with role and content"),
        ({"role": "user", "content": "Hi"}, "this is one message: put it into a list"),
        (["Hi", turns[0]], "prompt 1 is of type dict"),
        ([1], "prompt 0 is of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            sasa.generate(model, tokenizer, bad, boundary, chat=True)
    assert (
        len(sasa.generate(model, tokenizer, (text for text in ("Hi", "So")), boundary, **settings))
        == 2
    )
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system turns here') }}")
    with pytest.raises(
        ValueError, match="prompt 0: the chat template does not take it: no system turns here"
    ):
        sasa.generate(model, tokenizer, "Hi", boundary, chat=True)


@pytest.fixture
def task():
    pytest.importorskip("inspect_ai")
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message

    samples = [Sample(input=text, target="e") for text in ("Hi", "What is new?", "Say something")]
    return Task(samples, solver=[system_message("Be kind."), generate()], scorer=includes())


@pytest.mark.slow
def test_an_evaluation_of_inspect(task, tiny_folder, model, tokenizer, line, tmp_path):
    from inspect_ai import eval as evaluate

    arguments = dict(boundary=f"{line}::0.5", beta=3.0, strict=False, device="cpu")
    settings = dict(
        temperature=0.0, max_tokens=6, top_k=9, log_dir=str(tmp_path / "logs"), display="none"
    )
    (log,) = evaluate(task, model=f"sasa/{tiny_folder}", model_args=arguments, **settings)
    assert log.status == "success", log.error
    boundary = [(tiny.boundary(model), 0.5)]
    for sample in log.samples:
        turns = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": sample.input},
        ]
        want = sasa.generate(
            model,
            tokenizer,
            turns,
            boundary,
            3.0,
            chat=True,
            do_sample=False,
            top_k=9,
            max_new_tokens=6,
        )
        assert sample.output.completion == want[0].text
        assert sample.output.usage.output_tokens == len(want[0].tokens)
        assert sample.output.choices[0].stop_reason == (
            "max_tokens" if want[0].finish_reason == "length" else "stop"
        )


def test_requests_that_wait_are_written_together():
    anyio = pytest.importorskip("anyio")
    pytest.importorskip("inspect_ai")
    from sasa.evaluation.integrations.inspect_provider import Batches

    written = []

    def write(settings, prompts):
        written.append((settings["n"], sorted(prompts)))
        if "bad" in prompts:
            raise ValueError("no")
        return [[prompt.upper()] for prompt in prompts]

    batches = Batches(write, 3)
    got = {}

    async def ask(n, prompt):
        try:
            got[prompt] = await batches.ask({"n": n}, prompt)
        except ValueError as error:
            got[prompt] = str(error)

    async def all_of_them():
        async with anyio.create_task_group() as group:
            for n, prompt in (
                (1, "a"),
                (2, "b"),
                (1, "c"),
                (1, "d"),
                (1, "e"),
                (3, "bad"),
                (3, "f"),
            ):
                group.start_soon(ask, n, prompt)

    anyio.run(all_of_them)
    assert got == {
        "a": ["A"],
        "b": ["B"],
        "c": ["C"],
        "d": ["D"],
        "e": ["E"],
        "bad": "no",
        "f": ["F"],
    }
    assert (3, ["bad", "f"]) in written
    assert (3, ["f"]) in written, "a request that fails costs those beside it nothing"
    assert sorted(len(prompts) for n, prompts in written if n < 3) == [1, 1, 3]


def test_the_provider_refuses_what_it_does_not_do(tiny_folder, line):
    anyio = pytest.importorskip("anyio")
    pytest.importorskip("inspect_ai")
    from inspect_ai.model import GenerateConfig, get_model

    provider = get_model(f"sasa/{tiny_folder}", boundary="none", device="cpu", memoize=False)
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        anyio.run(lambda: provider.api.generate([], [], "auto", GenerateConfig(logprobs=True)))
    with pytest.raises(ValueError, match="calls no tools"):
        anyio.run(lambda: provider.api.generate([], [object()], "auto", GenerateConfig()))
    with pytest.raises(ValueError, match="at temperature 0 there is one choice"):
        anyio.run(
            lambda: provider.api.generate(
                [], [], "auto", GenerateConfig(temperature=0, num_choices=2)
            )
        )
    for bad, message in (
        (dict(boundary="none", beta=-1), "beta must be >= 0"),
        (dict(boundary=f"{line}::x", strict=False), "NAME::WEIGHT"),
        (dict(boundary=f"{line}::-2", strict=False), "weight must be >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            get_model(f"sasa/{tiny_folder}", device="cpu", **bad)


def test_a_reply_ends_before_a_stop_sequence_and_within_the_window(tiny_folder):
    anyio = pytest.importorskip("anyio")
    pytest.importorskip("inspect_ai")
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    provider = get_model(f"sasa/{tiny_folder}", boundary="none", device="cpu", memoize=False)
    ask = [ChatMessageUser(content="Hi")]
    whole = anyio.run(lambda: provider.generate(ask, config=GenerateConfig(temperature=0)))
    assert whole.usage.output_tokens <= 256 - whole.usage.input_tokens, (
        "what the model can read is the most"
    )
    stop = whole.completion[2:4]
    short = anyio.run(
        lambda: provider.generate(ask, config=GenerateConfig(temperature=0, stop_seqs=[stop]))
    )
    assert short.completion == whole.completion.partition(stop)[0]
    assert short.choices[0].stop_reason == "stop"


def test_a_boundary_goes_to_the_hub_and_comes_back(
    tiny_folder, corpus_file, model, tmp_path, monkeypatch
):
    fitted = tmp_path / "fitted"
    command("fit", f"{corpus_file}::text=comment,label=toxic", "-m", tiny_folder, "-o", fitted)
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token=None): ...
        def create_repo(self, repo_id, **kwargs):
            (hub / repo_id).mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, hub / repo_id, dirs_exist_ok=True)
            return f"https://hf.co/{repo_id}"

    def download(repo_id, allow_patterns, token):
        if not (hub / repo_id).is_dir():
            raise OSError("404")
        return hub / repo_id

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    told = command("push", fitted, "me/mine")
    assert "https://hf.co/me/mine: use it with --boundary me/mine" in told.stdout
    there = sorted(file.name for file in (hub / "me/mine").iterdir())
    assert there == ["README.md", "boundary.safetensors", "margins.png", "recipe.toml"]
    card = (hub / "me/mine/README.md").read_text()
    assert card.startswith("---\nlibrary_name: sasa\n")
    assert "inference: false" in card
    assert 'Boundary.load("me/mine", model=model)' in card
    assert "## On held-out texts" in card
    folder = tmp_path / "mine"
    told = command("pull", "me/mine", "-o", folder)
    assert f"use it with --boundary {folder}" in told.stdout.replace("\n", "")
    assert Boundary.load(folder).fingerprint == Boundary.load(fitted).fingerprint
    assert sorted(file.name for file in folder.iterdir()) == there
    for words, message in (
        (("pull", "me/mine", "-o", folder), "holds a boundary already"),
        (("pull", "me/none"), "no boundary at 'me/none'"),
        (("pull", "mine"), "is OWNER/NAME, got 'mine'"),
        (("push", fitted, "mine"), "is OWNER/NAME, got 'mine'"),
        (("push", tmp_path / "nothing", "me/mine"), "no boundary"),
        (
            ("push", fitted, "me/mine"),
            "cannot upload to 'me/mine'; the Hub says:",
        ),  # the folder is there already
    ):
        assert message in command(*words, status=1).stderr.replace("\n", "")


@pytest.mark.slow
def test_inspect_finds_the_provider_by_itself():
    pytest.importorskip("inspect_ai")
    code = (
        "from inspect_ai._util.entrypoints import ensure_entry_points as e; e(); import sys, json; "
    )
    code += "from inspect_ai._util.registry import registry_find, registry_info; "
    code += "print(json.dumps([registry_info(o).name for o in registry_find(lambda i: i.type == 'modelapi')]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert any(name.split("/")[-1] == "sasa" for name in json.loads(done.stdout))
