"""Records of rollouts: histories of changes against their invariants."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.rollout import Rollout, Step
from scheduler.core.rollout_machine import RolloutState, start
from scheduler.core.rollout_record import BYTES_MAX, HISTORY_MAX, Change, RolloutRecord, changed, created, move_id

ROLLOUT = Rollout("fast", "2", "fast", (Step(1_000),))
STATE = start(ROLLOUT, 5)


def replaced(**fields: object) -> RolloutState:
    return msgspec.structs.replace(STATE, **fields)


def test_a_rollout_is_created() -> None:
    """With the first line of its history."""
    record = created("fast", "text", STATE, who="ann", now=7)
    assert record == RolloutRecord("fast", "text", 1, 1, 7, STATE, (Change(7, "ann", "created", document="text"),))


def test_a_new_document_and_a_new_state() -> None:
    """The document's revision is the one that brought it; who created it when stays."""
    record = created("fast", "text", STATE, who="ann", now=7)
    paused = changed(record, replaced(phase="paused"), who="bob", action="pause", now=8, detail="lunch")
    assert (paused.revision, paused.document_revision, paused.document) == (2, 1, "text")
    assert paused.history[-1] == Change(8, "bob", "pause", "lunch")
    revised = created("fast", "other", STATE, who="eve", now=9, before=paused)
    assert (revised.revision, revised.document_revision, revised.created_at) == (3, 3, 7)
    assert revised.history == (*paused.history, Change(9, "eve", "revised", document="other"))


@given(st.lists(st.one_of(st.none(), st.integers(0, 65_536)), max_size=40), st.integers(0, 3))
def test_a_record_stays_small_and_loses_its_oldest_lines(sizes: list[int | None], character: int) -> None:
    """I1 and I2, for documents of the largest size, whatever letters they are of."""
    letters = "x\n\u00e9\U0001f600"[character]
    whole = [Change(0, "ann", "created", document="")]
    record = created("fast", "", STATE, who="ann", now=0)
    for now, size in enumerate(sizes, 1):
        before = record
        if size is None:
            record = changed(record, STATE, who="bob", action="pause", now=now)
            whole.append(Change(now, "bob", "pause"))
        else:
            document = letters * (size // len(letters.encode()))
            record = created("fast", document, STATE, who="eve", now=now, before=record)
            whole.append(Change(now, "eve", "revised", document=document))
        assert record.revision == before.revision + 1, "I1"
        assert record.history == tuple(whole[-len(record.history) :]), "I1"
    assert len(msgspec.json.encode(record)) <= BYTES_MAX, "I2"


def test_large_documents_leave_the_history_first() -> None:
    """I2: of ten of the largest size, with each letter escaped, the last remain; the one in force always does."""
    record = created("fast", "", STATE, who="ann", now=0)
    for now in range(10):
        record = created("fast", '"' * 65_536, STATE, who="ann", now=now, before=record)
        assert len(msgspec.json.encode(record)) <= BYTES_MAX, "I2"
    assert [change.at for change in record.history] == [8, 9]
    assert len(record.document) == 65_536


def test_the_number_of_lines_is_bounded() -> None:
    """However short they are."""
    record = created("fast", "text", STATE, who="ann", now=0)
    for now in range(HISTORY_MAX + 5):
        record = changed(record, STATE, who="ann", action="pause", now=now)
    assert len(record.history) == HISTORY_MAX
    assert record.history[0].at == 5


def test_each_state_that_wants_moves_has_an_id_of_its_own() -> None:
    """Short, and the same for the same."""
    record = created("fast", "text", STATE, who="ann", now=0)
    others = [
        changed(record, state, who="ann", action="x", now=1)
        for state in (replaced(phase="failed"), replaced(step=1), replaced(since=6))
    ]
    others.append(created("fast", "other", STATE, who="ann", now=1, before=record))
    others.append(msgspec.structs.replace(record, name="slow"))
    ids = {move_id(one) for one in (record, *others)}
    assert len(ids) == 6
    assert all(len(one) <= 16 for one in ids)
    assert move_id(changed(record, replaced(reason="y"), who="ann", action="x", now=2)) == move_id(record)
