"""The page itself, in Gradio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the page needs Gradio: pip install 'sasa-decoding[demo]'") from error

from sasa.core.boundary import Boundary
from sasa.core.settings import BETA, PRIOR, THRESHOLD, TOP_K, TOP_P
from sasa.demo import markup
from sasa.demo.studio import Studio, Wish, columns_of

SPARE = 4
"""Boundaries that a window may fit: each has a slider."""
CLEANED = 3600, 86400
"""Seconds between two looks for uploads and downloads to delete, and their age then."""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
EXAMPLES = (
    "The other driver cut me off, and I rolled down the window and shouted:",
    "So I told my roommate exactly what I thought of him: he is a",
    "My neighbour's dog kept barking all night, so",
    "The best thing about our town is",
)
INTRODUCTION = """# sasa
The same model twice, from the same seed: on its own, and minding its language by a boundary in its own hidden space."""
FIT_NOTE = """A table with a text a row and a label: a CSV, TSV, JSON, JSON-lines or Parquet file. A few hundred rows of each
kind are a start; at most 2,000 are read. The boundary steers at once, in this window alone, and can be downloaded."""


def build(studio: Studio, name: str) -> gr.Blocks:
    """The page of a studio; `name` is what its model is called."""
    with gr.Blocks(
        title="sasa", analytics_enabled=False, fill_width=True, delete_cache=CLEANED
    ) as page:
        fitted = gr.State({})  # boundaries of this window, by name
        gr.Markdown(f"{INTRODUCTION} Model: `{name}`.")
        with gr.Tab("Write"):
            sliders = _write_tab(studio, fitted)
        with gr.Tab("Inspect my text"):
            choice = _inspect_tab(studio, fitted)
        with gr.Tab("Fit a boundary"):
            _fit_tab(studio, fitted, sliders, choice)
    return page


def launch(
    studio: Studio,
    name: str,
    host: str,
    port: int | None,
    share: bool,
    open_: bool,
    wait: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serves the page; returns it and its address at once where `wait` is False."""
    page = build(studio, name)
    page.queue(default_concurrency_limit=None)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=open_,
        prevent_thread_lock=not wait,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size="20mb",
        css_paths=markup.STYLE,
        theme=gr.themes.Default(primary_hue="blue"),
    )
    return page, address


def _write_tab(studio: Studio, fitted: gr.State) -> list[gr.Slider]:
    with gr.Row():
        prompt = gr.Textbox(
            EXAMPLES[0],
            label="Prompt",
            lines=2,
            scale=5,
            autofocus=True,
            elem_id="prompt",
            submit_btn=False,
        )
        with gr.Column(scale=1, min_width=120):
            go = gr.Button("Write", variant="primary", elem_id="write")
            stop = gr.Button("Stop", elem_id="stop")
    with gr.Row(equal_height=False):
        with gr.Column():
            gr.Markdown("### On its own")
            plain = gr.HTML(elem_id="plain", elem_classes="sasa-html", min_height=120)
        with gr.Column():
            gr.Markdown("### Steered")
            steered = gr.HTML(
                elem_id="steered", elem_classes=["sasa-html", "sasa-right"], min_height=120
            )
    gr.HTML(markup.LEGEND)
    controls = _controls()
    sliders = _weights(list(studio.boundaries))
    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Prompts")

    def write(
        prompt: str, beta: float, prior: float, temperature: float, top_k: float, top_p: float, tokens: float, chat: bool,
        seed: float | None, back: bool, threshold: float, fitted: dict[str, Boundary], *weights: float,
    ) -> Iterator[tuple[str, str]]:  # fmt: skip
        known = [*studio.boundaries, *fitted]
        if None in (prompt, beta, prior, temperature, top_k, top_p, tokens, threshold, *weights):
            raise gr.Error("a field is empty: fill it, or take its default back by the arrow")
        try:
            wish = Wish(
                dict(zip(known, weights, strict=False)),
                beta, prior, int(top_k), top_p, temperature, int(tokens), None if seed is None else int(seed) % 2**31, chat,
                threshold if back else None,
            )  # fmt: skip
            for one, other, line in studio.write(prompt, wish, fitted):
                done = one.completion is not None and other.completion is not None
                yield (
                    markup.side(prompt, one, line, cards=done),
                    markup.side(prompt, other, line, cards=done),
                )
        except (ValueError, OverflowError) as error:
            raise gr.Error(str(error)) from error

    running = gr.on(
        [go.click, prompt.submit],
        write,
        [prompt, *controls, fitted, *sliders],
        [plain, steered],
        show_progress="hidden",
        **ONE_AT_A_TIME,
    )
    stop.click(None, None, None, cancels=[running])
    return sliders


def _controls() -> list[gr.components.Component]:
    """The settings of writing, in the order in which `write` takes them."""
    with gr.Row():
        beta = gr.Slider(
            0,
            20,
            BETA,
            step=0.5,
            label="beta",
            info="strength; 0 is the model on its own",
            elem_id="beta",
        )
        prior = gr.Slider(
            0.01,
            0.99,
            PRIOR,
            step=0.01,
            label="prior",
            info="share of text taken for unsafe: lower waits longer",
        )
        temperature = gr.Slider(0.1, 2, 1.0, step=0.1, label="temperature")
    with gr.Row():
        top_k = gr.Slider(1, 100, TOP_K, step=1, label="top-k", elem_id="top-k")
        top_p = gr.Slider(0.05, 1, TOP_P, step=0.05, label="top-p")
        tokens = gr.Slider(5, 200, 40, step=5, label="new tokens", elem_id="tokens")
    with gr.Row():
        chat = gr.Checkbox(
            False, label="chat", info="through the model's chat template", elem_id="chat"
        )
        seed = gr.Number(
            None, label="seed", precision=0, info="empty: another one each time", elem_id="seed"
        )
        back = gr.Checkbox(
            False, label="backtrack", info="what goes wrong is taken back", elem_id="backtrack"
        )
        threshold = gr.Slider(
            0.5,
            0.999,
            THRESHOLD,
            step=0.001,
            label="threshold",
            info="P(unsafe) from which it is",
            elem_id="threshold",
        )
    return [beta, prior, temperature, top_k, top_p, tokens, chat, seed, back, threshold]


def _weights(names: list[str]) -> list[gr.Slider]:
    """A slider for the weight of each boundary, and hidden ones for those that the window may fit."""
    with gr.Row():
        return [
            gr.Slider(
                0, 2, 0 if i else 1, step=0.1, label=f"weight of {names[i]}" if i < len(names) else "",
                visible=i < len(names), elem_id=f"weight-{i}", min_width=140,
            )
            for i in range(len(names) + SPARE)
        ]  # fmt: skip


def _inspect_tab(studio: Studio, fitted: gr.State) -> gr.Dropdown:
    gr.Markdown("Where does a text turn? Its margin as it grows, token by token.")
    text = gr.Textbox(label="Text", lines=4, elem_id="text")
    choice = gr.Dropdown(list(studio.boundaries), label="Boundary", elem_id="boundary")
    go = gr.Button("Inspect", variant="primary", elem_id="inspect")
    shown = gr.HTML(elem_id="inspected", elem_classes="sasa-html", min_height=80)
    gr.HTML(markup.LEGEND)

    def inspect(text: str, name: str | None, fitted: dict[str, Boundary]) -> str:
        boundary = {**studio.boundaries, **fitted}.get(name or "")
        if boundary is None:
            raise gr.Error("no boundary is chosen: fit one first")
        if not text.strip():
            raise gr.Error("the text is empty")
        try:
            tokens, margins = boundary.trace(studio.model, studio.tokenizer, text)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return markup.inspected(tokens, margins.tolist(), boundary)

    go.click(inspect, [text, choice, fitted], shown, **ONE_AT_A_TIME)
    return choice


def _fit_tab(
    studio: Studio, fitted: gr.State, sliders: list[gr.Slider], choice: gr.Dropdown
) -> None:
    gr.Markdown(FIT_NOTE)
    file = gr.File(
        label="Table", file_types=[".csv", ".tsv", ".json", ".jsonl", ".parquet"], elem_id="table"
    )
    with gr.Row():
        text = gr.Dropdown([], label="Column of texts", elem_id="text-column")
        label = gr.Dropdown([], label="Column of labels", elem_id="label-column")
        positive = gr.Textbox(
            label="Labels that mean unsafe",
            info="where they are names, with commas between",
            elem_id="positive",
        )
    go = gr.Button("Fit", variant="primary", elem_id="fit")
    told = gr.Markdown(elem_id="fitted", min_height=90)
    made = gr.File(label="The boundary", visible=False, elem_id="made")

    def read(path: str | None) -> tuple[Any, Any]:
        if path is None:
            return gr.Dropdown([], value=None), gr.Dropdown([], value=None)
        try:
            names, of_text, of_label = columns_of(path)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error
        return gr.Dropdown(names, value=of_text), gr.Dropdown(names, value=of_label)

    def fit(
        path: str | None, text: str | None, label: str | None, positive: str, fitted: dict[str, Boundary],
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio's own way
    ) -> Iterator[Any]:  # fmt: skip
        if path is None or not text or not label:
            raise gr.Error("choose a table, its column of texts and its column of labels")
        if len(fitted) == SPARE:
            raise gr.Error(f"a window fits {SPARE} boundaries: open another one")

        def tell(what: str, done: float, total: float | None) -> None:
            progress((int(done), int(total) if total else None), desc=what, unit="texts")

        progress(0.0, desc="reading")
        try:
            boundary, written = studio.fit(path, text, label, positive, tell)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error
        known = {**studio.boundaries, **fitted}
        name = boundary.attribute
        while name in known:
            name += "'"
        fitted = {**fitted, name: boundary}
        names = [*studio.boundaries, *fitted]
        test = boundary.report["test"]
        said = (
            f"**{name}** steers now, alone. Of {test['safe'] + test['unsafe']} held-out texts: AUC {test['auc']:.3f}, "
            f"accuracy {test['accuracy']:.3f}."
        )
        weights = [
            gr.Slider(label=f"weight of {names[i]}", visible=True, value=float(names[i] == name))
            if i < len(names)
            else gr.Slider()
            for i in range(len(sliders))
        ]
        yield (
            fitted,
            said,
            gr.File(str(written), visible=True),
            gr.Dropdown(names, value=name),
            *weights,
        )

    file.change(read, file, [text, label])
    go.click(
        fit,
        [file, text, label, positive, fitted],
        [fitted, told, made, choice, *sliders],
        show_progress_on=told,
        **ONE_AT_A_TIME,
    )
