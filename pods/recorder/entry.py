"""The entries of a recording: typed, each one line of JSON, in memory and on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

CLUE: Final = "at its end: "  # begins a remark about what was found out when a container had ended
_LONGEST: Final = 1024  # bytes of a text


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """`at` is nanoseconds since the epoch, `took` nanoseconds, `about` a container's name, or "" for the pod itself."""

    at: int
    about: str

    @property
    def key(self) -> tuple[object, ...]:
        """Return what two entries must share to be counted as one; () if the entry is never counted."""
        return ()


class Step(_Entry, frozen=True, tag="step"):
    """A step of an operation was taken (pods.trace)."""

    operation: str
    name: str
    took: int


class Steps(_Entry, frozen=True, tag="steps"):
    """Steps of one operation that followed each other: one line instead of many. `steps` are `at`, `name`, `took`."""

    operation: str
    steps: list[tuple[int, str, int]]

    def each(self) -> Iterator[Step]:
        """Yield the steps one by one."""
        for at, name, took in self.steps:
            yield Step(at, self.about, self.operation, name, took)


class Life(_Entry, frozen=True, tag="life"):
    """A pod or container was created, started, stopped, deleted."""

    id: str
    event: str
    code: int = 0
    reason: str = ""
    detail: str = ""


class Plugin(_Entry, frozen=True, tag="plugin"):
    """A network plugin ran; `failure` is its error message."""

    command: str
    name: str
    took: int
    failure: str = ""


class Said(_Entry, frozen=True, tag="said"):
    """A line of the log that names the pod, or a remark for the recorder only."""

    level: str
    text: str


class Wrote(_Entry, frozen=True, tag="wrote"):
    """The last lines that a container wrote before it ended with an error."""

    text: str


class Refused(_Entry, frozen=True, tag="refused"):
    """A call failed `count` times, last at `at`. `kinds` are the classes of the error and of its causes."""

    call: str
    code: str
    kinds: tuple[str, ...]
    text: str
    took: int
    count: int = 1
    first: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        return ("refused", self.about, self.call, self.code, _without_ids(self.text))


class Answered(_Entry, frozen=True, tag="answered"):
    """A call succeeded."""

    call: str
    took: int


class Left(_Entry, frozen=True, tag="left"):
    """A call's caller disconnected before the answer, for example at its deadline."""

    call: str
    took: int


class Ran(_Entry, frozen=True, tag="ran"):
    """A command ran in a container (ExecSync: probes), `count` times with this exit code, last at `at`.

    `words` is the last line that it wrote, if it failed.
    """

    command: str
    code: int
    took: int
    count: int = 1
    first: int = 0
    words: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return ("ran", self.about, self.command, self.code)


class Runs(_Entry, frozen=True, tag="runs"):
    """A command (ExecSync) that has not ended; `limit` is in seconds, 0 for none. No recording has it."""

    command: str
    limit: float


Entry = Step | Life | Plugin | Said | Wrote | Answered | Refused | Left | Ran | Runs
Counted = Refused | Ran
Line = Entry | Steps  # what is in memory and on disk

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Line)


def encode(entry: Line) -> bytes:
    """Encode an entry as one line."""
    try:
        return _encoder.encode(entry) + b"\n"
    except UnicodeEncodeError:  # bytes that are not text (pods.octets); nobody needs them back
        document = msgspec.to_builtins(entry)
        return _encoder.encode([_shown(value) for value in document]) + b"\n"


def decode(line: bytes) -> Line | None:
    """Decode a line; None if it is incomplete, or if another version wrote it."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None


def cut(text: str, longest: int = _LONGEST) -> str:
    """Shorten a text to its beginning and its end, which usually has the cause."""
    if len(text) <= longest:
        return text
    half = longest // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


def encodable(text: str) -> str:
    """Return a text without what no UTF-8 stands for: bytes of names of files, and what plugins' JSON may have."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(value: object) -> object:
    return encodable(value) if isinstance(value, str) else value


def _without_ids(text: str) -> str:
    """Return the text without ids, which differ between attempts."""
    return " ".join("ID" if len(word) >= 64 and word.strip("`'\":,.").isalnum() else word for word in text.split(" "))
