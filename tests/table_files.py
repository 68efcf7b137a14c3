"""Short ways to write a table into a file, and to read it back."""

from sasa.fitting import Corpus


def write(tmp_path, name, content, encoding="utf-8"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def texts(path, skipped=None, **settings):
    corpus = Corpus(path, **({"text": "text", "label": "label"} | settings))
    return [(e.text, e.score) for e in corpus.examples(skipped=skipped)]
