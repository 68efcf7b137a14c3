"""Labelled texts and dialogues, and the files that hold them."""
