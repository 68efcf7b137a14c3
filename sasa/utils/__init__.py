"""Helpers without domain knowledge: files, JSON lines, progress, parallel execution."""
