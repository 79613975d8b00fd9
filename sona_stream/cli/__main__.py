"""`python -m sona_stream.cli`."""

from . import main

main(prog_name="sona-stream")
