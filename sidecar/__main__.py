"""`python -m sidecar`, which is `prompt-sidecar`: the short way to a probe, and the command line for all else."""

import os
import signal
import sys


def main() -> None:
    """Run the command.

    A kubelet probes every few seconds for as long as the pod lives, so a probe imports nothing but a socket.
    """
    if sys.argv[1:2] == ["probe"]:
        from sidecar.probe import main as probe

        probe(sys.argv[2:])  # ends the process, or leaves what it cannot read to the command line below
    if sys.argv[1:2] == ["run"]:
        # Until the loop has handlers of its own, a second from now: nothing is begun yet. The first process of a
        # container has no default: without a handler a stop would be ignored, and the grace period waited out.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from sidecar.cli import main as command_line

    command_line(prog_name="prompt-sidecar")


if __name__ == "__main__":
    main()
