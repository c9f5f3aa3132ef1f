"""``python -m evoquant``."""

from evoquant.cli import main

main()
