"""Reports of benchmark runs: figures, Markdown and plots."""
