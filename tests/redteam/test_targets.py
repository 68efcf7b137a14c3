"""Targets: models, commands, functions and endpoints, and their failures."""

import http.server
import json
import sys
import threading
import time

import numpy as np
import pytest
import tiny
from attacks import attack, files
from shell import sasa as command

import sasa

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.evaluation.settings import Settings
from sasa.redteam import (
    Attempts,
    Command,
    Endpoint,
    Function,
    ModelTarget,
    Reply,
    write_report,
)
from sasa.redteam.targets import NOTHING, check_target, load_function


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
