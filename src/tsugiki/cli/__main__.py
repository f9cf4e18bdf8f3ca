"""`python -m tsugiki.cli`."""

from tsugiki.cli import main

main()
