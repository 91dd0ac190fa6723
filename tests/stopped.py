"""Runs a command of this repository in a process that stops itself at a chosen moment.

    python stopped.py '[EVENT, NUMBER, DELAY, ACTION]' train.py ARGUMENT...

The moment is `DELAY` seconds before the `NUMBER`-th file operation below the working directory
whose description contains `EVENT` would begin, or just before it, where the delay is 0; later if
it is positive. A description is "open PATH", "rename PATH PATH" or "remove PATH", of names alone.
`ACTION` is the name of a signal, which the process sends itself, or "full": from then on no file
may grow beyond 100 bytes, so that the system refuses writes, in their midst, as a full disk does.
"""

import json
import os
import resource
import runpy
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    event, number, delay, action = json.loads(sys.argv[1])
    script, here = Path(__file__).parent.parent / sys.argv[2], os.getcwd()
    sys.argv[:] = sys.argv[2:]
    sys.path[0] = str(script.parent)
    left = number

    def stop() -> None:
        if action == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), signal.Signals[action])

    def start() -> None:
        threading.Timer(delay, stop).start() if delay else stop()

    def hook(name: str, arguments: tuple) -> None:
        nonlocal left
        if name not in ("open", "os.rename", "os.remove"):
            return
        if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        paths = [p for p in arguments[:2] if isinstance(p, (str, os.PathLike))]
        paths = [os.path.abspath(p) for p in paths if name != "open" or p == arguments[0]]
        if not all(p.startswith(here) for p in paths):
            return
        text = " ".join([name.removeprefix("os."), *map(os.path.basename, paths)])
        if event in text:
            left -= 1
            if left == 0:
                start()

    if number == 0:
        start()
    else:
        sys.addaudithook(hook)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
