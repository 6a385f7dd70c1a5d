"""Runs a target on inputs, and tells what became of them."""

from __future__ import annotations

import hashlib
import random
import re
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutator import PIECES, mutate
from tests.fuzz.targets import Target

FOUND = Path(__file__).parent / "found"
_CPU_SECONDS = 10.0  # of this process, for one input
_GROWTH = 256 << 10  # KiB by which one input may raise this process's largest size
_POOL = 400
_TRIES = 400  # to make a found input smaller


class TooLong(BaseException):
    """An input took too much processor time."""


class TooLarge(BaseException):
    """An input took too much memory."""


@dataclass
class Outcome:
    """Counts of one target's run, and the inputs that it found, by what they ended in."""

    tried: int = 0
    refused: int = 0
    ends: Counter[str] = field(default_factory=Counter)  # by a refusal's kind and words
    found: dict[str, bytes] = field(default_factory=dict)

    def line(self, name: str) -> str:
        counts = f"{self.tried:>9} inputs {self.tried - self.refused:>9} read {self.refused:>9} refused"
        return f"{name:20}{counts} in {len(self.ends):>4} ways {len(self.found):>3} found"


def saved(target: Target) -> list[bytes]:
    """The inputs that were found and mended once."""
    directory = FOUND / target.name
    return [path.read_bytes() for path in sorted(directory.iterdir())] if directory.is_dir() else []


def save(target: Target, data: bytes) -> Path:
    """Keep a found input."""
    path = FOUND / target.name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def attempt(target: Target, data: bytes) -> str:
    """Run one input: "" if it was read, else how it was refused. Raises what is neither."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _limited():
        try:
            target.run(data)
            refusal = ""
        except target.errors as error:
            refusal = f"{type(error).__name__} {re.sub(r'[^a-z ]+', '', str(error)[:200])[:60]}"
    if (growth := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > _GROWTH:
        raise TooLarge(f"{growth >> 10} MiB for {len(data)} bytes")
    return refusal


@contextmanager
def _limited() -> Iterator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise TooLong(f"more than {_CPU_SECONDS:g} s of the processor")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(target: Target, more: Callable[[Outcome], bool], seed: int = 1) -> Outcome:
    """Try the seeds, the saved inputs, and mutations while `more` says so.

    An input that is refused in a new way is mutated further: so the run gets behind checks that come early.
    """
    outcome, dice = Outcome(), random.Random(f"{seed} {target.name}")
    pool = [*target.seeds(), *saved(target)]
    for data in (*pool, *PIECES):
        _try(target, data[: target.largest], outcome)
    while more(outcome):
        data = mutate(dice.choice(pool), pool, dice)[: target.largest]
        if _try(target, data, outcome):
            if len(pool) < _POOL:
                pool.append(data)
            else:
                pool[dice.randrange(_POOL)] = data
    return outcome


def _try(target: Target, data: bytes, outcome: Outcome) -> bool:
    """Whether the input ended in a new way."""
    outcome.tried += 1
    try:
        refusal = attempt(target, data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        key = _key(error)
        if key not in outcome.found:
            outcome.found[key] = _smaller(target, data, key)
        return False
    outcome.refused += bool(refusal)
    outcome.ends[refusal] += bool(refusal)
    return bool(refusal) and outcome.ends[refusal] == 1


def _key(error: BaseException) -> str:
    """What makes a fault another one: its kind and place."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/run.py" not in frame.filename
    ]
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    place = (ours or frames)[-1] if frames else None
    if isinstance(error, TooLong | RecursionError):
        place = frames[0] if frames else None
    where = f"{place.filename.rpartition('/')[2]}:{place.name}" if place is not None else ""
    return f"{type(error).__name__} in {where}"


def _smaller(target: Target, data: bytes, key: str) -> bytes:
    """The input without what the fault does not need."""
    if key.startswith(("TooLong", "TooLarge")):
        return data
    tries, size = 0, max(1, len(data) // 2)
    while size and tries < _TRIES:
        at, changed = 0, False
        while at < len(data) and tries < _TRIES:
            tries += 1
            shorter = data[:at] + data[at + size :]
            try:
                attempt(target, shorter)
            except BaseException as error:
                if _key(error) == key:
                    data, changed = shorter, True
                    continue
            at += size
        if not changed:
            size //= 2
    return data
