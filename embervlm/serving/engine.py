"""The engine of the server: a bounded queue, and the threads that answer from it together, in one batch.

Below the routes and above ``RobotSelector``, which makes each answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from embervlm.data.images import decode_image
from embervlm.fleet import Fleet
from embervlm.runtime.base import Reader
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import OnStep, RobotSelector, Selection
from embervlm.serving.limits import check_picture
from embervlm.serving.lockstep import Lockstep, SlotReader

logger = logging.getLogger(__name__)

WARM_UP_TASK = "Carry the box to the gate, then film the roof."


class BusyError(Exception):
    """The queue is full; ``retry_after`` says in how many seconds to ask again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; ask again in {retry_after} s")
        self.retry_after = retry_after


class StoppedError(Exception):
    """The work was stopped: the client left, the time was up, or the server ends."""


@dataclass(frozen=True)
class Question:
    """What is asked: the arguments of :meth:`RobotSelector.select`, the picture still encoded."""

    task: str
    image: bytes | None = None
    top_n: int | None = None
    reason: bool = True
    fleet: Fleet | None = None
    coverage: float | None = None


@dataclass(eq=False)
class Job:
    """A question on its way to an answer; :meth:`cancel` stops the work at its next step."""

    question: Question
    deadline: float
    on_step: OnStep | None = None
    answer: Future[Selection] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True

    def check(self, part: str = "", text: str = "") -> None:
        """Pass a step on.

        Raises:
            StoppedError: the client has left or the time is up.
        """
        if self.cancelled:
            raise StoppedError("the client has left")
        if time.monotonic() > self.deadline:
            raise StoppedError("the time is up")
        if self.on_step is not None and part:
            self.on_step(part, text)


class Engine:
    """Answers questions with one model.

    ``slots`` threads take jobs from the queue, first come, first served; what they read and write is run as one batch
    (:class:`Lockstep`), but ONNX graphs answer each by itself. Answers are the same whoever shares the batch.
    """

    def __init__(self, selector: RobotSelector, *, slots: int, queue: int, timeout_s: float, max_pixels: int) -> None:
        self.selector = selector
        self.slots, self.queue, self.timeout_s, self.max_pixels = slots, queue, timeout_s, max_pixels
        self.batch = Lockstep(selector.model, slots) if isinstance(selector.runtime, TorchRuntime) else None
        self.ready = False
        self.stopped = 0
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._working: set[Job] = set()
        self._closed = False
        self._seconds = 0.2
        self._fleet_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"embervlm-answer-{number}", daemon=True)
            for number in range(slots)
        ]

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Jobs being answered."""
        return len(self._working)

    def start(self) -> None:
        """Start the threads and answer once, so that the first user does not pay for what is made on first use."""
        for thread in self._threads:
            thread.start()
        self.submit(Question(WARM_UP_TASK)).answer.result()
        self.ready = True

    def check_room(self) -> None:
        """Make sure that a further job would be taken, before any work is done for it.

        Raises:
            BusyError: it would not.
        """
        if len(self._waiting) + len(self._working) >= self.slots + self.queue:
            raise BusyError(self.retry_after())
        if self._closed:
            raise BusyError(1)

    def retry_after(self) -> int:
        """Whole seconds after which those in the queue are most likely done."""
        return max(1, round(self._seconds * (1 + self.queue / self.slots)))

    def submit(self, question: Question, on_step: OnStep | None = None) -> Job:
        """Put a question into the queue.

        Raises:
            BusyError: the queue is full, or the server ends.
        """
        job = Job(question, time.monotonic() + self.timeout_s, on_step)
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self, drain_s: float) -> bool:
        """Take nothing more, wait for what is in work, stop what is not done by then.

        Returns:
            whether everything was answered.
        """
        end = time.monotonic() + drain_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._waiting and not self._working, drain_s)
            for job in (*self._waiting, *self._working):
                job.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(1.0, end - time.monotonic()))
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._working.add(job)
            started = time.monotonic()
            try:
                found = self._answer(job)
            except BaseException as error:
                self.stopped += isinstance(error, StoppedError)
                self._leave(job)
                job.answer.set_exception(error)
            else:
                self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
                self._leave(job)
                job.answer.set_result(found)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._working.discard(job)
            self._changed.notify_all()

    def _answer(self, job: Job) -> Selection:
        question, batch, places = job.question, self.batch, list[SlotReader]()

        def reader(fleet: Any) -> Reader:
            if batch is None:
                return self.selector.runtime.reader(fleet)
            places.append(batch.join(fleet))
            return places[-1]

        job.check()
        picture = None
        if question.image is not None:
            check_picture(question.image, self.max_pixels)
            picture = decode_image(question.image, name="image")
            job.check()
        try:
            return self.selector.select(
                question.task,
                picture,
                top_n=question.top_n,
                reason=question.reason,
                fleet=question.fleet,
                coverage=question.coverage,
                on_step=job.check,
                reader=reader,
            )
        finally:
            for place in places:
                place.leave()
