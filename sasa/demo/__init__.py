"""The page: a model on its own and with its language steered, side by side, in a browser.

`studio` writes, measures and fits; `turns` has two generations take turns; `markup` makes HTML of what comes of it; `page`
is the only file that imports Gradio.
"""
