"""`sasa serve`: vLLM's server, under load, with requests that are steered, plain, cancelled and wrong. Needs vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip(
        "vLLM is not installed here: `make test-vllm` has an environment with it",
        allow_module_level=True,
    )

import httpx
import psutil
from serving.test_vllm import saved

from sasa.redteam.targets import Endpoint

LIMIT = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server, and its process."""
    folder = saved(tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "sasa",
                    "serve",
                    str(folder / "model"),
                    "--served-model-name",
                    "small",
                ),
                *(
                    "-b",
                    f"calm={folder / 'calm'}",
                    "-b",
                    f"polite={folder / 'polite'}",
                    "--port",
                    str(port),
                ),
                *(
                    "--dtype",
                    "float32",
                    "--enforce-eager",
                    "--max-model-len",
                    "256",
                    "--max-num-seqs",
                    "32",
                ),
                *("--num-gpu-blocks-override", "24", "--block-size", "32"),
            ],
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(LIMIT):
        if process.poll() is not None:
            pytest.fail((folder / "log").read_text()[-3000:])
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(1)
    yield url, process
    process.terminate()
    process.wait(60)


def ask(url: str, **more: object) -> httpx.Response:
    body = {"model": "small", "prompt": "Hello there", "max_tokens": 10, "temperature": 1.0, **more}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT)


def test_what_is_wrong_is_refused_in_one_line(server):
    url, _ = server
    for xargs, message in (
        ({"sasa_beta": -1}, "sasa_beta must be >= 0, got -1.0"),
        ({"sasa_boundary": "kind"}, "no boundary 'kind' is loaded here; there are: calm, polite"),
        ({"sasa_strength": 2}, "unknown sasa_strength"),
    ):
        found = ask(url, vllm_xargs=xargs)
        assert found.status_code == 400
        assert message in found.json()["error"]["message"]
        assert "\n" not in found.json()["error"]["message"]
    assert ask(url, logprobs=2).status_code == 400


def test_steered_and_plain_requests_are_told_apart(server):
    url, _ = server
    plain, again, steered = (
        ask(url, temperature=0, vllm_xargs=x, max_tokens=30).json()["choices"][0]["text"]
        for x in (
            None,
            {"sasa_beta": 0},
            {"sasa_beta": 8.0, "sasa_boundary": ["calm::1", "polite::0.5"]},
        )
    )
    assert plain == again != steered
    seeded = [
        ask(url, seed=3, vllm_xargs={"sasa_beta": 2.0}).json()["choices"][0]["text"]
        for _ in range(2)
    ]
    assert seeded[0] == seeded[1]


def test_it_can_be_attacked_by_its_address(server):
    url, _ = server
    target = Endpoint(f"{url}/v1", "small", extra={"vllm_xargs": {"sasa_beta": 2.0}})
    assert all(reply.error is None for reply in target.reply(["Hello", "You there"], 0))
    refused = Endpoint(f"{url}/v1", "small", extra={"vllm_xargs": {"sasa_beta": "much"}})
    assert "sasa_beta must be a number" in refused.reply(["Hello"], 0)[0].error


def test_it_streams_what_it_writes_at_once(server):
    url, _ = server
    asked = {
        "prompt": "Hello",
        "temperature": 0,
        "max_tokens": 12,
        "vllm_xargs": {"sasa_beta": 2.0},
    }
    body = {"model": "small", "stream": True, **asked}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=LIMIT) as got:
        lines = [line for line in got.iter_lines() if line.startswith("data: {")]
    assert len(lines) > 3
    text = "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines)
    assert text == ask(url, **asked).json()["choices"][0]["text"]


def figure(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(
        float(value)
        for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
    )


def memory(process: subprocess.Popen) -> int:
    whole = psutil.Process(process.pid)
    return sum(one.memory_info().rss for one in [whole, *whole.children(recursive=True)])


def test_two_hundred_requests_at_once(server):
    """Half of them steered, of mixed lengths, with a cache that is too small for all; some are cancelled, some wrong."""
    url, process = server
    draw = random.Random(0)

    def one(number: int) -> str:
        asked: dict[str, object] = {
            "prompt": "so they say " * draw.randint(1, 12),
            "max_tokens": draw.randint(1, 60),
            "seed": number,
        }
        if number % 2:
            asked["vllm_xargs"] = {
                "sasa_beta": draw.choice([0.5, 2.0, 8.0]),
                "sasa_boundary": draw.choice(["calm", "polite"]),
            }
        if number % 10 == 3:
            asked["vllm_xargs"] = {"sasa_beta": -1.0}
        if number % 10 == 7:  # somebody who does not wait
            body = {"model": "small", "stream": True, **asked, "max_tokens": 100}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=LIMIT) as got:
                next(got.iter_lines(), None)
            return "cancelled"
        found = ask(url, **asked)
        return {200: "answered", 400: "refused"}.get(found.status_code, found.text)

    def round_() -> dict[str, int]:
        with ThreadPoolExecutor(200) as pool:
            said = list(pool.map(one, range(200)))
        return {what: said.count(what) for what in set(said)}

    expected = {"answered": 160, "refused": 20, "cancelled": 20}
    assert round_() == expected
    before = memory(process)
    for _ in range(2):
        assert round_() == expected
    for _ in range(60):
        if not figure(url, "vllm:num_requests_running") + figure(url, "vllm:num_requests_waiting"):
            break
        time.sleep(1)
    assert figure(url, "vllm:num_requests_running") + figure(url, "vllm:num_requests_waiting") == 0
    assert figure(url, "vllm:kv_cache_usage_perc") == 0
    assert figure(url, "vllm:num_preemptions_total") > 0, "the cache was too large for this test"
    assert memory(process) < before * 1.1
    assert ask(url).status_code == 200
