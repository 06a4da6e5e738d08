"""Errors about files are one line long."""

from pathlib import Path

from fedkd.data.sources.files import folders, one_line, unreadable


def test_train_and_test_count_only_together(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert folders(tmp_path) == [tmp_path]  # a class may bear that name
    (tmp_path / "test").mkdir()
    assert folders(tmp_path) == [tmp_path / "train", tmp_path / "test"]


def test_a_message_of_many_lines_becomes_one() -> None:
    assert one_line(ValueError("bad\n  header\tfound\n")) == "bad header found"


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    assert one_line(EOFError()) == "EOFError"


def test_a_file_that_cannot_be_read_is_named_with_the_cause() -> None:
    told = str(unreadable(Path("a/b.npz"), "an .npz file", OSError("bad\nblock")))
    assert (
        told == "a/b.npz: expected an .npz file, found none that can be read (bad block); check the path and content."
    )


def test_a_file_that_is_not_there_is_said_so() -> None:
    told = str(unreadable(Path("a/b.npz"), "an .npz file", FileNotFoundError(2, "No such file or directory")))
    assert told == "a/b.npz: expected an .npz file, found nothing there; check the path."
