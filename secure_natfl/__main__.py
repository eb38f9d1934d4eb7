"""`python -m secure_natfl` is `natfl`."""

from secure_natfl.cli import main

main()
