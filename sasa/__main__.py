"""`python -m sasa`: the command line."""

from sasa.cli import main

main()
