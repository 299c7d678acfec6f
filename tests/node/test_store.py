from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.ledger.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


def names(store: Store) -> list[str]:
    with store.reading() as db:
        return sorted(row["name"] for row in db.execute("SELECT name FROM counter"))


def all_at_once(store: Store, writes: list) -> list[object]:
    """Hand every write in while another transaction is open; what each gave or raised."""
    outcomes: list[object] = [None] * len(writes)

    def hand_in(number: int) -> None:
        try:
            outcomes[number] = store.together(writes[number])
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=hand_in, args=(number,)) for number in range(len(writes))]
    with store.writing():
        for thread in threads:
            thread.start()
        while len(store._waiting) < len(writes):
            time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    return outcomes


def test_what_is_handed_in_meanwhile_is_committed_once_together(store: Store) -> None:
    statements: list[str] = []

    def insert(number: int):
        def write(db):
            db.set_trace_callback(statements.append)
            db.execute("INSERT INTO counter VALUES (?, 1)", (f"c{number}",))
            return number

        return write

    assert all_at_once(store, [insert(number) for number in range(4)]) == [0, 1, 2, 3]
    assert names(store) == ["c0", "c1", "c2", "c3"]
    assert statements.count("COMMIT") == 1


def test_a_write_that_raises_is_undone_alone(store: Store) -> None:
    def insert(name: str, error: Exception | None = None):
        def write(db):
            db.execute("INSERT INTO counter VALUES (?, 1)", (name,))
            if error is not None:
                raise error

        return write

    error = LookupError("not this one")
    assert all_at_once(store, [insert("a"), insert("b", error), insert("c")]) == [None, error, None]
    assert names(store) == ["a", "c"]
    with pytest.raises(LookupError, match="not this one"):
        store.together(insert("d", error))


def test_a_transaction_that_fails_is_heard_by_all_who_share_it(store: Store) -> None:
    def insert(db):
        db.execute("INSERT INTO counter VALUES ('a', 1)")

    def ruin(db):
        db.execute("COMMIT")  # as SQLite ends a transaction by itself when the disk fails

    store.together(insert)
    outcomes = all_at_once(store, [ruin, lambda db: None])
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert names(store) == ["a"]
    store.together(lambda db: db.execute("INSERT INTO counter VALUES ('b', 1)") and None)
    assert names(store) == ["a", "b"]
