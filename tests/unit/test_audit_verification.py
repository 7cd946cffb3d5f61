"""Whatever is done to a log, verification finds it; what it cannot find is stated here too."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.serving.audit_verification import Verification, verify
from tests.audit_logs import (
    PROMPT,
    Fields,
    canonical,
    head_file,
    lines_of,
    open_log,
    rechained,
    record,
    rewrite,
    with_own_hash,
    write_log,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five lines, three of them with texts."""
    return write_log(tmp_path / "audit.jsonl", days=30)


def place_of(path: Path) -> tuple[int, str]:
    """Return the line and the kind of what is wrong with a log."""
    problem = verify(path).problem
    assert problem is not None
    return problem.line, problem.kind


def test_a_log_that_nobody_touched_is_valid(path: Path) -> None:
    lines = lines_of(path)
    assert verify(path) == Verification(
        num_lines=5,
        first_time=lines[0]["time"],
        last_time=lines[-1]["time"],
        head=lines[-1]["hash"],
        num_texts=3,
    )


def each_flipped(path: Path, flip: int) -> Iterator[tuple[int, int]]:
    """Flip a file's bytes one after another; yield the place and what stood there."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ flip]), place)
            yield place, byte
            os.pwrite(file.fileno(), bytes([byte]), place)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_each_flipped_byte_is_found_and_its_line_named(path: Path, flip: int) -> None:
    missed = []
    number = 1
    for place, byte in each_flipped(path, flip):
        problem = verify(path).problem
        if problem is None or problem.line != number:
            missed.append((place, problem))
        number += byte == ord("\n")
    assert missed == []


def test_the_check_that_the_documentation_shows_finds_an_edited_line(path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    check = page.partition("```python\n")[2].partition("```")[0]
    command = [sys.executable, "-c", check]
    assert check
    assert subprocess.run(command, cwd=path.parent, check=False).returncode == 0
    path.write_bytes(path.read_bytes().replace(b'"score":-3.25', b'"score":-3.75', 1))
    done = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
    assert b"AssertionError" in done.stderr


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_dropped_line_is_found(path: Path, number: int) -> None:
    lines = lines_of(path)
    del lines[number - 1]
    rewrite(path, lines)
    assert place_of(path) == (number, "order")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_line_that_stands_twice_is_found(path: Path, number: int) -> None:
    lines = lines_of(path)
    rewrite(path, [*lines[:number], *lines[number - 1 :]])
    assert place_of(path) == (number + 1, "order")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_two_lines_in_another_order_are_found(path: Path, number: int) -> None:
    lines = lines_of(path)
    lines[number - 1 : number + 1] = lines[number - 1 : number + 1][::-1]
    rewrite(path, lines)
    assert place_of(path) == (number, "order")


@pytest.mark.parametrize("num_left", [0, 1, 2, 3, 4])
def test_lines_cut_off_at_the_end_are_found(path: Path, num_left: int) -> None:
    rewrite(path, lines_of(path)[:num_left])
    assert place_of(path) == (num_left + 1, "head")


def test_a_line_cut_in_its_middle_is_found(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content) - 1, content.rindex(b"\n", 0, -1) + 1, -1):
        os.truncate(path, size)
        assert place_of(path) == (5, "torn")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_numbered_as", ["the line before", "the next line"])
def test_a_forged_line_whose_own_hash_is_right_is_found(
    path: Path, number: int, is_numbered_as: str
) -> None:
    lines = lines_of(path)
    sequence = number + (is_numbered_as == "the next line")
    fields = {**lines[number - 1], "sequence": sequence, "previous": lines[number - 1]["hash"]}
    rewrite(path, [*lines[:number], with_own_hash(fields), *lines[number:]])
    fits = is_numbered_as == "the next line"
    if fits and number == 5:
        assert place_of(path) == (6, "head")
    else:
        assert place_of(path) == (number + 1 + fits, "order")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_an_edited_line_with_a_new_hash_of_its_own_is_found(path: Path, number: int) -> None:
    lines = lines_of(path)
    lines[number - 1] = with_own_hash({**lines[number - 1], "kind": "forged"})
    rewrite(path, lines)
    assert place_of(path) == ((6, "head") if number == 5 else (number + 1, "order"))


def forge_whole(path: Path) -> str:
    """Write all hashes of a log anew after one edit; return the newest."""
    lines = lines_of(path)
    lines[1]["route"] = "error"
    forged = rechained(lines)
    rewrite(path, forged)
    return str(forged[-1]["hash"])


def test_a_log_that_was_forged_as_a_whole_does_not_fit_its_head_file(path: Path) -> None:
    forge_whole(path)
    assert place_of(path) == (6, "head")


def test_a_head_file_that_was_forged_too_is_found_by_a_hash_kept_elsewhere_only(path: Path) -> None:
    known = lines_of(path)[2]["hash"]
    assert verify(path, known_hash=known).num_lines_after_known == 2
    old = lines_of(path)[-1]["hash"]
    new = forge_whole(path)
    head_file(path).write_bytes(head_file(path).read_bytes().replace(old.encode(), new.encode()))
    assert verify(path).is_valid
    problem = verify(path, known_hash=known).problem
    assert problem is not None
    assert problem.kind == "head"


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_an_edited_head_file_is_found(path: Path, flip: int) -> None:
    content = head_file(path).read_bytes()
    start = content.index(b'"start":') + len(b'"start":')
    hint = range(start, content.index(b"}"))  # where to look first: it decides nothing
    flipped = each_flipped(head_file(path), flip)
    missed = [place for place, _ in flipped if verify(path).is_valid and place not in hint]
    assert missed == []


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"sequence":5', b'"sequence":"5"'), (b'"start":', b'"start":-'), (b" \n", b"\n ")],
    ids=range(3),
)
def test_a_head_file_that_demur_did_not_write_is_found(path: Path, old: bytes, new: bytes) -> None:
    head_file(path).write_bytes(head_file(path).read_bytes().replace(old, new))
    assert place_of(path) == (6, "head")


def test_a_log_without_its_head_file_is_valid_only_by_a_hash_kept_elsewhere(path: Path) -> None:
    known = lines_of(path)[-1]["hash"]
    head_file(path).unlink()
    assert place_of(path) == (6, "head")
    assert verify(path, known_hash=known).is_valid


def test_the_first_of_several_problems_is_reported(path: Path) -> None:
    lines = lines_of(path)
    lines[1]["text"]["prompt"] += "!"
    lines[2]["text"]["prompt"] += "!"
    lines[3]["route"] = "error"
    rewrite(path, lines)
    found = verify(path)
    assert found.problem is not None
    assert (found.problem.line, found.problem.kind) == (2, "text")
    assert (found.num_texts, found.num_texts_edited, found.num_lines) == (0, 2, 3)


def remove_text(line: Fields) -> None:
    del line["text"], line["text_salt"]


def remove_salt(line: Fields) -> None:
    del line["text_salt"]


def remove_text_but_not_its_salt(line: Fields) -> None:
    del line["text"]


def exchange_text(line: Fields) -> None:
    line["text"] = {"prompt": PROMPT, "reply": "something else"}


def replace_salt_by_none(line: Fields) -> None:
    line["text_salt"] = "none"


@pytest.mark.parametrize(
    "tamper",
    [
        remove_text,
        remove_salt,
        remove_text_but_not_its_salt,
        exchange_text,
        replace_salt_by_none,
    ],
)
def test_a_text_that_was_removed_or_changed_by_hand_is_found(
    path: Path, tamper: Callable[[Fields], None]
) -> None:
    lines = lines_of(path)
    tamper(lines[2])
    rewrite(path, lines)
    assert place_of(path) == (3, "text")


def test_a_text_added_to_a_line_that_had_none_is_found(path: Path) -> None:
    lines = lines_of(path)
    lines[4] |= {"text": {"prompt": "x", "reply": None}, "text_salt": "00"}
    rewrite(path, lines)
    assert place_of(path) == (5, "text")


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"NaN\n",
        b"[" * 100_000 + b"\n",
        b"1" * 5000 + b"\n",
        b"\x80\n",
        canonical(with_own_hash({"sequence": 1, "previous": "0" * 64})) + b"\n",
        canonical(
            with_own_hash({"sequence": 1, "previous": "0" * 64, "kind": "start", "time": None})
        )
        + b"\n",
    ],
    ids=range(10),
)
def test_what_is_no_line_at_all_is_found(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert place_of(path) == (1, "edited")


def test_a_file_without_line_ends_is_not_read_into_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.serving._audit_lines.MAX_LINE_BYTES", 1000)
    path.write_bytes(b" " * 10_000)
    assert place_of(path) == (1, "edited")


def test_a_log_being_written_is_read_up_to_its_newest_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        log.write(record())
        with path.open("ab") as file:
            file.write(b'{"half a li')
        found = verify(path)
        path.write_bytes(path.read_bytes().removesuffix(b'{"half a li'))
    assert (found.is_valid, found.is_live, found.num_lines) == (True, True, 2)
    found = verify(path)
    assert (found.is_valid, found.is_live, found.num_lines) == (True, False, 3)


def test_a_line_edited_in_a_log_being_written_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        log.write(record())
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"route":"pass"', b'"route":"pasS"'))
        assert place_of(path) == (2, "edited")
        path.write_bytes(whole)


def test_a_log_in_which_nothing_was_written_yet_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch()
    head_file(path).touch()
    found = verify(path)
    assert (found.is_valid, found.num_lines, found.first_time) == (True, 0, None)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="there is no audit log"):
        verify(tmp_path / name)


def test_a_hash_that_is_none_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        verify(path, known_hash="abc")


def peak_memory(path: Path) -> int:
    tracemalloc.start()
    try:
        verify(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    peaks = [
        peak_memory(write_log(tmp_path / f"{number}.jsonl", num_requests=number, days=1))
        for number in (10, 10, 400)
    ]
    assert peaks[2] < 1.1 * peaks[1]
