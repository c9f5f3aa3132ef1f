import sqlite3

import pytest

from evoquant.errors import RunError
from evoquant.run.journal import Journal, Record


def record(phenotype="a", split="selection", **changes):
    fields = {
        "phenotype": phenotype,
        "split": split,
        "status": "done",
        "plan": {"conv": {"weight_bits": 8}},
        "result": {"kl": 0.1 + 0.2},
        "scores": b"\x00\x01",
        "reason": None,
        "seconds": 0.5,
    }
    return Record(**{**fields, **changes})


def test_a_record_is_read_back_exactly(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.add(record())
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.get("a", split="selection") == record()
        assert journal.get("a", split="test") is None
        assert journal.get("b", split="selection") is None


def test_records_come_in_the_order_in_which_they_finished(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        for name in "cab":
            journal.add(record(name))
        assert [entry.phenotype for entry in journal] == ["c", "a", "b"]
        assert journal.seconds() == pytest.approx(1.5)


def test_a_failure_keeps_its_reason(tmp_path):
    failed = record(status="failed", result=None, reason="The model's output is not finite")
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.add(failed)
        assert journal.get("a", split="selection") == failed


def test_claiming_again_resumes(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.claim({"experiment": "1"}) is False
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.claim({"experiment": "1"}) is True


def test_another_run_is_refused_with_the_difference(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.claim({"experiment": "1", "model": "x"})
        with pytest.raises(RunError, match=r"model: the folder has x, this run has y"):
            journal.claim({"experiment": "1", "model": "y"})


def test_a_full_disk_is_an_error_that_keeps_what_was_written(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.add(record("kept"))
        journal._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(RunError, match="database or disk is full"):
            journal.add(record("lost", plan={"conv": "x" * 100_000}))
        assert journal.get("kept", split="selection") == record("kept")


def test_a_file_that_is_no_journal_is_named(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"Cannot open the journal .*journal\.sqlite"):
        Journal(path)


def test_an_unfinished_write_is_not_seen(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.add(record("a"))
    connection = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("DELETE FROM evaluations")
    connection.close()
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.get("a", split="selection") is not None


def test_what_is_kept_for_the_run_survives_and_does_not_change_whose_run_it_is(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.claim({"seed": "1"})
        assert journal.kept("probes") is None
        journal.keep("probes", {"errors": [[0.5, 1e-17]]})
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.claim({"seed": "1"})
        assert journal.kept("probes") == {"errors": [[0.5, 1e-17]]}
