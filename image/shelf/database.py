"""Stores images, their names and layers in `images.db` (SQLite). Every method is one transaction.

A connection belongs to the thread that opened it: the store calls it from a single-threaded executor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from image.errors import ImageError, ImageNotFound, StorageFull
from image.trust.signatures import Signature

_VERSION = 6
_KINDS, _SEALS = 5, 6  # the versions that brought the columns of layers. Read-only stores may have earlier ones,
_UNCHANGEABLE = (4, 5, _VERSION)  # these
UNPACKED, INDEXED = "unpacked", "tar+erofs"  # the kinds of layers
_SIGNATURES = """
CREATE TABLE signatures (
    image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
"""
_SCHEMA = f"""
CREATE TABLE images (
    id TEXT PRIMARY KEY, manifest BLOB NOT NULL, config BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE names (
    name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX names_of_image ON names (image);
CREATE TABLE layers (
    chain_id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL, inodes INTEGER NOT NULL,
    sealed INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL DEFAULT '{UNPACKED}',
    seal TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE image_layers (
    image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    position INTEGER NOT NULL,
    chain_id TEXT NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
{_SIGNATURES}
"""
_UPGRADES = {  # upgrades a database from this version to the next
    1: _SIGNATURES,
    2: "ALTER TABLE layers ADD sealed INTEGER NOT NULL DEFAULT 0;",
    3: """
    CREATE TABLE layers_of_image (
        image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
        position INTEGER NOT NULL,
        chain_id TEXT NOT NULL,
        PRIMARY KEY (image, position)
    ) WITHOUT ROWID;
    INSERT INTO layers_of_image SELECT image, position, chain_id FROM image_layers;
    DROP TABLE image_layers;
    ALTER TABLE layers_of_image RENAME TO image_layers;
    """,  # drops a foreign key: an image's layers may be in another store
    4: f"ALTER TABLE layers ADD kind TEXT NOT NULL DEFAULT '{UNPACKED}';",
    5: "ALTER TABLE layers ADD seal TEXT NOT NULL DEFAULT '';",
}


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer on disk. `number` names its directory; `size` (bytes) and `inodes` are its disk usage, with a kept blob.

    Nothing in it may have changed since `sealed` (nanoseconds since the epoch, 0 if unknown). `kind` is what the
    directory holds: UNPACKED the layer's files, INDEXED its tar and an EROFS index over it, which was checked and has
    this `seal` (image.erofs.seal; "" if an earlier crisp wrote it, which did not check).
    """

    chain_id: str
    number: int
    size: int
    inodes: int
    sealed: int = 0
    kind: str = UNPACKED
    seal: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image: its original documents, its layers from the lowest up, its names."""

    id: str
    manifest: bytes
    config: bytes
    chain_ids: tuple[str, ...]
    names: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()  # those that the signature policy required at the pull


class Database:
    """Raises StorageFull if the disk is full, and ImageError for all other failures; both name the file."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """`read_only`: for a store that nobody changes; its file system may be read-only."""
        self._path = path
        self._version = _VERSION
        with ExitStack() as undo:
            with self._explained("open"):
                self._connection = self._connected(read_only)
                undo.callback(self._connection.close)
                if not read_only:
                    self._prepare()
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (_UNCHANGEABLE if read_only else (_VERSION,)):
                what = "fill the store with this version of crisp" if read_only else "start the crisp that wrote it"
                raise ImageError(f"open {path}: schema version {version}, this crisp knows {_VERSION}: {what}")
            self._version = version
            undo.pop_all()

    def _connected(self, read_only: bool) -> sqlite3.Connection:
        if not read_only:
            return sqlite3.connect(self._path, isolation_level=None)
        log = self._path.with_name(f"{self._path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise ImageError(f"open {self._path}: it is in use, or its crispd was killed: start and stop that crispd")
        # Immutable: SQLite makes no lock and shared memory files beside it.
        return sqlite3.connect(f"{self._path.as_uri()}?immutable=1", uri=True)

    def _prepare(self) -> None:
        """Make the tables, or bring those of an earlier version up to date."""
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {_VERSION};COMMIT;")
        while version in _UPGRADES:
            self._connection.executescript(f"BEGIN;{_UPGRADES[version]}PRAGMA user_version = {version + 1};COMMIT;")
            version += 1

    def close(self) -> None:
        self._connection.close()

    def images(self) -> list[ImageRecord]:
        with self._explained("read"):
            rows = self._connection.execute("SELECT id, manifest, config FROM images").fetchall()
            return [
                ImageRecord(
                    *(image, manifest, config),
                    chain_ids=self._chain_ids(image),
                    names=self._names(image),
                    signatures=self._signatures(image),
                )
                for image, manifest, config in rows
            ]

    def layers(self) -> list[LayerRecord]:
        with self._explained("read"):
            later = ", kind" * (self._version >= _KINDS) + ", seal" * (self._version >= _SEALS)
            columns = f"chain_id, number, size, inodes, sealed{later}"
            return [LayerRecord(*row) for row in self._connection.execute(f"SELECT {columns} FROM layers")]

    def documents(self, image: str) -> tuple[bytes, bytes]:
        """Return an image's original manifest and configuration. Raises ImageNotFound."""
        with self._explained("read"):
            row = self._connection.execute("SELECT manifest, config FROM images WHERE id = ?", (image,)).fetchone()
        if row is None:
            raise ImageNotFound(f"read {self._path}: no image {image}")
        return bytes(row[0]), bytes(row[1])

    def add(self, image: ImageRecord, new_layers: Iterable[LayerRecord]) -> None:
        """Record an image with its layers. Its names are taken from the images that had them."""
        with self._transaction() as connection:
            self._add_layers(new_layers)
            connection.execute(
                "INSERT INTO images VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET manifest = excluded.manifest",
                (image.id, image.manifest, image.config),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO image_layers VALUES (?, ?, ?)",
                [(image.id, position, chain_id) for position, chain_id in enumerate(image.chain_ids)],
            )
            self._name(image.id, image.names)
            self._sign(image.id, image.signatures)

    def add_layers(self, layers: Iterable[LayerRecord]) -> None:
        """Record layers that no image has."""
        with self._transaction():
            self._add_layers(layers)

    def reseal(self, layer: LayerRecord) -> None:
        """Record a layer's new index: its seal, its size and the time from which on nothing may change."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE layers SET seal = ?, size = ?, sealed = ? WHERE chain_id = ?",
                (layer.seal, layer.size, layer.sealed, layer.chain_id),
            )

    def sign(self, image: str, signatures: Iterable[Signature]) -> None:
        """Replace the signatures of an image."""
        with self._transaction():
            self._sign(image, signatures)

    def name(self, image: str, names: Iterable[str]) -> None:
        """Give names to an image, and take them from the images that had them."""
        with self._transaction():
            self._name(image, names)

    def remove(self, images: Iterable[str], layers: Iterable[str]) -> None:
        """Remove images with their names, and layers that no other image has."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM images WHERE id = ?", [(image,) for image in images])
            connection.executemany("DELETE FROM layers WHERE chain_id = ?", [(chain_id,) for chain_id in layers])

    def remove_layer(self, number: int) -> None:
        """Remove one layer that no image has."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM layers WHERE number = ?", (number,))

    def _add_layers(self, layers: Iterable[LayerRecord]) -> None:
        self._connection.executemany(
            # A cancelled pull may be about to remove the one that it had recorded.
            "REPLACE INTO layers (chain_id, number, size, inodes, sealed, kind, seal) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(it.chain_id, it.number, it.size, it.inodes, it.sealed, it.kind, it.seal) for it in layers],
        )

    def _name(self, image: str, names: Iterable[str]) -> None:
        self._connection.executemany("REPLACE INTO names VALUES (?, ?)", [(name, image) for name in names])

    def _sign(self, image: str, signatures: Iterable[Signature]) -> None:
        self._connection.execute("DELETE FROM signatures WHERE image = ?", (image,))
        self._connection.executemany(
            "INSERT INTO signatures VALUES (?, ?, ?, ?, ?)",
            [(image, position, one.kind, one.payload, one.signature) for position, one in enumerate(signatures)],
        )

    def _signatures(self, image: str) -> tuple[Signature, ...]:
        query = "SELECT kind, payload, signature FROM signatures WHERE image = ? ORDER BY position"
        return tuple(Signature(*row) for row in self._connection.execute(query, (image,)))

    def _chain_ids(self, image: str) -> tuple[str, ...]:
        query = "SELECT chain_id FROM image_layers WHERE image = ? ORDER BY position"
        return tuple(row[0] for row in self._connection.execute(query, (image,)))

    def _names(self, image: str) -> tuple[str, ...]:
        query = "SELECT name FROM names WHERE image = ? ORDER BY name"
        return tuple(row[0] for row in self._connection.execute(query, (image,)))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained("write"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StorageFull(f"{verb} {self._path}: no space left") from error
            raise ImageError(f"{verb} {self._path}: {error}") from error
