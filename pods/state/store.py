"""Stores sandboxes and containers in SQLite, one JSON record per row (WAL, synchronous=FULL).

The database is read once, at start; later reads are from memory. One thread commits the writes, each time everything
that waits in one transaction: pods started together share an fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import msgspec

from pods import octets
from pods.errors import PodError
from pods.model import Container, Sandbox

SCHEMA_VERSION: Final = 1


class SandboxRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A sandbox, and how far its creation or removal has come."""

    sandbox: Sandbox
    finished: bool = False  # RunPodSandbox succeeded; an unfinished one is undone at the next start
    network: bool = False  # CNI ADD was tried, and no DEL has succeeded since
    stopped: bool = False  # StopPodSandbox succeeded: only the record and files are left


class ContainerRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A container; `finished` once CreateContainer has succeeded."""

    container: Container
    finished: bool = False


Record = SandboxRecord | ContainerRecord
_Write = tuple[str, tuple[str, ...]]
_Writes = tuple[_Write, ...]  # one transaction's
_Batched = tuple[_Writes, Future[None]]
Stored = tuple[list[str], dict[str, Record]]  # what is damaged; records by id


class Store:
    """The database. `put` and `delete_*` return once the change is on disk; they raise PodError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[_Batched | Future[Stored] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._open_failure: Future[tuple[list[SandboxRecord], list[ContainerRecord]]] = Future()

    async def open(self) -> tuple[list[SandboxRecord], list[ContainerRecord]]:
        """Open or create the database and read all records. Raises PodError."""
        self._thread.start()
        try:
            return await asyncio.wrap_future(self._open_failure)
        except (sqlite3.OperationalError, OSError) as error:
            raise PodError(f"open state database `{self.path}`: {error}") from error
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise PodError(
                f"open state database `{self.path}`: it is damaged: {error}: put a copy back, or move it away: crispd "
                "then ends and removes the pods that it cannot know any more"
            ) from error

    async def put(self, *records: Record) -> None:
        """Insert or replace the records: all of them or, after a crash, none."""
        await asyncio.wrap_future(self.begin_put(*records))

    def begin_put(self, *records: Record) -> Future[None]:
        """Start a `put` without waiting: the future is done once the records are on disk."""
        return self._submit(*(_insertion(record) for record in records))

    async def delete_sandbox(self, sandbox_id: str) -> None:
        await asyncio.wrap_future(self._submit(("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,))))

    async def delete_container(self, container_id: str) -> None:
        await asyncio.wrap_future(self._submit(("DELETE FROM containers WHERE id = ?", (container_id,))))

    async def read(self) -> Stored:
        """Read everything again, after the writes that wait. A second connection would keep descriptors open."""
        reader: Future[Stored] = Future()
        reader.set_running_or_notify_cancel()
        self._queue.put(reader)
        return await asyncio.wrap_future(reader)

    def close(self) -> None:
        """Commit the waiting writes and close the database."""
        self._queue.put(None)
        self._thread.join()

    def _submit(self, *writes: _Write) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # cancelling the waiter does not cancel the write
        self._queue.put((writes, future))
        return future

    def _run(self) -> None:
        try:
            database = self._connect()
            state = self._load(database)
        except BaseException as error:
            self._open_failure.set_exception(error)
            return
        self._open_failure.set_result(state)
        while True:
            batch, readers, closing = self._next_batch()
            if batch:
                _commit(database, batch)
            for reader in readers:
                reader.set_result(_read(database))
            if closing:
                database.close()
                return

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_emptied()
        mask = os.umask(0o077)
        try:
            database = sqlite3.connect(self.path, isolation_level=None)
        finally:
            os.umask(mask)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise PodError(
                f"its schema version is {version}, this crisp knows {SCHEMA_VERSION}: start the crisp that wrote it"
            )
        problems = [text for (text,) in database.execute("PRAGMA quick_check(3)") if text != "ok"]
        if problems:
            raise sqlite3.DatabaseError("; ".join(problems))
        for table in ("sandboxes", "containers"):
            database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return database

    def _refuse_emptied(self) -> None:
        """Raise sqlite3.Error for an empty file where there are pods: SQLite would take it for a new database."""
        beside = self.path.with_name(f"{self.path.name}-wal")
        if not self.path.exists() or self.path.stat().st_size or (beside.exists() and beside.stat().st_size):
            return
        for name in ("containers", "network"):
            place = self.path.with_name(name)
            if place.is_dir() and any(place.iterdir()):
                raise sqlite3.DatabaseError(f"it is empty, but `{place}` is not")

    def _load(self, database: sqlite3.Connection) -> tuple[list[SandboxRecord], list[ContainerRecord]]:
        def rows(table: str) -> list[str]:
            return [body for (body,) in database.execute(f"SELECT record FROM {table}")]

        return (
            [octets.decode(body, SandboxRecord) for body in rows("sandboxes")],
            [octets.decode(body, ContainerRecord) for body in rows("containers")],
        )

    def _next_batch(self) -> tuple[list[_Batched], list[Future[Stored]], bool]:
        """Return what waits, at least one entry: writes, readers, and whether the store is closing."""
        batch: list[_Batched] = []
        readers: list[Future[Stored]] = []
        entry = self._queue.get()
        while entry is not None:
            if isinstance(entry, Future):
                readers.append(entry)
            else:
                batch.append(entry)
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, readers, False
        return batch, readers, True


def _read(database: sqlite3.Connection) -> Stored:
    found: dict[str, Record] = {}
    try:
        problems = [text for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
        for object_id, body in database.execute("SELECT id, record FROM sandboxes"):
            found[object_id] = octets.decode(body, SandboxRecord)
        for object_id, body in database.execute("SELECT id, record FROM containers"):
            found[object_id] = octets.decode(body, ContainerRecord)
    except (sqlite3.Error, msgspec.DecodeError) as error:
        return [str(error)], found
    return problems, found


def _insertion(record: Record) -> _Write:
    if isinstance(record, SandboxRecord):
        table, key = "sandboxes", record.sandbox.id
    else:
        table, key = "containers", record.container.id
    return f"INSERT OR REPLACE INTO {table} (id, record) VALUES (?, ?)", (key, octets.encode(record))


def _commit(database: sqlite3.Connection, batch: list[_Batched]) -> None:
    try:
        database.execute("BEGIN IMMEDIATE")
        for writes, _future in batch:
            for statement, parameters in writes:
                database.execute(statement, parameters)
        database.execute("COMMIT")
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):  # this thread must go on; later writes report what is wrong
            database.execute("ROLLBACK")
        failure = PodError(f"write state database: {error}")
        for _writes, future in batch:
            future.set_exception(failure)
    else:
        for _writes, future in batch:
            future.set_result(None)
