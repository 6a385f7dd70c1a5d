"""The image store's record: what an earlier version wrote is read on."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from image.errors import ImageError
from image.shelf.database import INDEXED, UNPACKED, Database, ImageRecord, LayerRecord
from image.trust.signatures import SIMPLE, Signature

VERSION_1 = """
CREATE TABLE images (id TEXT PRIMARY KEY, manifest BLOB NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE) WITHOUT ROWID;
CREATE TABLE layers (chain_id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL,
                     inodes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_layers (image TEXT NOT NULL REFERENCES images ON DELETE CASCADE, position INTEGER NOT NULL,
                           chain_id TEXT NOT NULL REFERENCES layers, PRIMARY KEY (image, position)) WITHOUT ROWID;
INSERT INTO images VALUES ('i', x'00', x'01');
INSERT INTO names VALUES ('n:1', 'i');
INSERT INTO layers VALUES ('c', 7, 4096, 1);
INSERT INTO image_layers VALUES ('i', 0, 'c');
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "images.db") as connection:
        connection.executescript(VERSION_1)
    signed = Signature(SIMPLE, b"message")
    for signatures in ((), (signed,)):
        database = Database(tmp_path / "images.db")
        assert database.layers() == [LayerRecord("c", 7, 4096, 1, sealed=0)]
        assert database.images() == [ImageRecord("i", b"\0", b"\1", ("c",), ("n:1",), signatures)]
        database.sign("i", [signed])
        database.close()


def test_a_store_without_kinds_of_layers_is_read_where_it_may_not_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "images.db"
    database = Database(path)
    indexed = LayerRecord("c", 7, 4096, 3, 5, INDEXED)
    database.add(ImageRecord("i", b"", b"", ("c",)), [indexed])
    database.close()
    assert Database(path, read_only=True).layers() == [indexed]
    with sqlite3.connect(path) as connection:
        connection.executescript("ALTER TABLE layers DROP COLUMN kind; PRAGMA user_version = 4;")
    connection.close()
    assert Database(path, read_only=True).layers() == [LayerRecord("c", 7, 4096, 3, 5, UNPACKED)]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path, *, read_only: bool) -> None:
    with closing(sqlite3.connect(tmp_path / "images.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ImageError, match="schema version 99") as refused:
        Database(tmp_path / "images.db", read_only=read_only)
    files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
    assert [file for file in files if str(tmp_path) in file] == [], refused  # whose traceback holds the database
