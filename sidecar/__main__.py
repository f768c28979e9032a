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
        os.environ.pop("SSLKEYLOGFILE", None)  # Python would write the keys of TLS connections there
        _may_be_stopped_while_it_starts()
    from sidecar.cli import main as command_line

    command_line(prog_name="prompt-sidecar")


def _may_be_stopped_while_it_starts() -> None:
    """End at once when told to: nothing has begun, and a container's first process gets no signal without a handler.

    A SIGHUP, which would end any other, asks for what is about to be read anyway.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


if __name__ == "__main__":
    main()
