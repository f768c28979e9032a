"""Make `python -m sidecar` the same as `prompt-sidecar`."""

from sidecar.cli import main

main()
