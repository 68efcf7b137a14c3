"""Several generations in turns, a token each: side by side on one machine, each as if it were alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Job = Callable[[Callable[[], None]], None]
"""Work that calls what it is given wherever another may take its turn."""


class _Stopped(BaseException):
    """Ends a job whose results nobody waits for any more."""


def in_turns(jobs: Sequence[Job]) -> Iterator[None]:
    """Runs jobs in threads of which one works at a time, until all are done; yields after each turn.

    Each has torch's global random state to itself, so that it draws what it would draw alone. Closing the iterator ends the
    jobs at their next turn.

    Raises:
        Exception: what a job has raised, after the others were ended.
    """
    turns = [threading.Semaphore(0) for _ in jobs]
    said: queue.SimpleQueue[tuple[int, bool, BaseException | None]] = queue.SimpleQueue()
    stopped = False

    def run(number: int, job: Job) -> None:
        def give_way() -> None:
            state = _random_state()
            said.put((number, False, None))
            turns[number].acquire()
            _restore(state)
            if stopped:
                raise _Stopped

        turns[number].acquire()
        error: BaseException | None = None
        try:
            if not stopped:
                job(give_way)
        except _Stopped:
            pass
        except BaseException as raised:
            error = raised
        said.put((number, True, error))

    before = _random_state()
    threads = [
        threading.Thread(target=run, args=(i, job), daemon=True) for i, job in enumerate(jobs)
    ]
    going = list(range(len(jobs)))
    for thread in threads:
        thread.start()
    try:
        while going:
            for number in list(going):
                turns[number].release()
                _, done, error = said.get()
                if done:
                    going.remove(number)
                if error is not None:
                    raise error
                yield
    finally:
        stopped = True
        for number in going:
            turns[number].release()
            while not said.get()[1]:
                turns[number].release()
        for thread in threads:
            thread.join()
        _restore(before)


def _random_state() -> tuple[Any, list[Any]]:
    return (
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def _restore(state: tuple[Any, list[Any]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
