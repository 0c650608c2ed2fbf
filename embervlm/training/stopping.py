"""How a run is asked to stop: signals are noted here, and the engine acts on them when a step ends on all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

#: What the command ends with after a signal, when its checkpoint is written: as a shell names the signal.
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_INTERRUPTED = 128 + signal.SIGINT

_LOOK_SECONDS = 1.0
#: Written where the numbers of signals are: nobody listens any more.
_OVER = b"\0"


class Stopped(RuntimeError):
    """A run that was asked to stop and has saved a checkpoint; ``exit_code`` is what the command ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignals:
    """Notes SIGTERM and SIGINT while a stage trains. A second SIGINT interrupts at once.

    A process that waits for another one in a collective operation cannot look at what was noted. So once a signal has
    come, a thread watches the other processes on this machine, and ends this one if one of them is gone, since the step
    then never ends.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.acted_on = threading.Event()
        self._read, self._write = -1, -1

    @contextlib.contextmanager
    def listening(self, peers: Sequence[int] = ()) -> Iterator[StopSignals]:
        """Listen for as long as the context lasts.

        Args:
            peers: the process ids of the other processes on this machine.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        former = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(tuple(peers),), daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(former)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.acted_on.set()
            # Not by closing: data-loading workers have the pipe too, and where an error ends training they still live.
            os.write(self._write, _OVER)
            watcher.join()
            os.close(self._write)
            os.close(self._read)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.noted is signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = self.noted or signal.Signals(number)

    def _watch(self, peers: tuple[int, ...]) -> None:
        # The number of a signal is written there even while the main thread does not come back to Python.
        while (received := os.read(self._read, 1)) != _OVER:
            if received[0] in (signal.SIGTERM, signal.SIGINT):
                break
        else:
            return
        while not self.acted_on.wait(_LOOK_SECONDS):
            if not all(is_running(peer) for peer in peers) and not self.acted_on.wait(_LOOK_SECONDS):
                os._exit(128 + received[0])


class Watchdog:
    """Ends this process when nothing has happened in it for too long, as where another process no longer answers.

    The process group's own timeout does not reach every wait: with gloo a stopped process was waited for without end.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def beat(self) -> None:
        """Say that something has happened."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def watching(self, peers: Sequence[int] = ()) -> Iterator[None]:
        """Watch for as long as the context lasts.

        Args:
            peers: the process ids of the other processes on this machine. One that is suspended cannot end by itself,
                and torchrun would wait half a minute for it.
        """
        over = threading.Event()
        self.beat()

        def watch() -> None:
            while not over.wait(min(_LOOK_SECONDS, self.seconds)):
                if time.monotonic() - self._last > self.seconds:
                    line = f"embervlm train: no step for {self.seconds:.0f} s: another process no longer answers, or "
                    line += "--ddp_timeout is too short; --resume auto goes on from the last checkpoint\n"
                    os.write(2, line.encode())
                    for peer in peers:
                        if _status(peer) == ("T", os.getppid()):
                            os.kill(peer, signal.SIGKILL)
                    os._exit(1)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended."""
    return _status(process)[0] not in "ZX"


def _status(process: int) -> tuple[str, int]:
    """A process's state as Linux names it, X where there is none, and its parent."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "X", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def machine_number() -> int:
    """A number for this machine, the same in all of its processes."""
    return int.from_bytes(socket.gethostname().encode()[:7].ljust(7, b"\0"))
