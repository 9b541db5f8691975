"""The recorder: what is written comes back, from several processes in one order, whoever was killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from base.clock import SimClock
from base.errors import BadRequest, StoreUnavailable
from roadstead.history.check import check
from roadstead.history.events import Deliver, Event, Invoke, Ok, Read, ReadEntry
from roadstead.history.recorder import Recorder, digest, load
from tests.roadstead.history.tiny_system import System


def record(path: Path, events: list[Event], process: str) -> None:
    """Write the events of one process as lines, by its own recorder."""
    with Recorder(path, process=process) as recorder:
        for event in events:
            recorder._write(event)


def test_a_history_in_files_is_judged_as_the_one_in_memory(tmp_path: Path):
    """One file a process; merged by time, and nothing changed."""
    events = System(3).run()
    processes = sorted({event.process for event in events})
    paths = [tmp_path / f"{process}.jsonl" for process in processes]
    for path, process in zip(paths, processes, strict=True):
        record(path, [event for event in events if event.process == process], process)
    loaded = list(load(paths))
    assert [event.at for event in loaded] == [event.at for event in events]
    for process in processes:
        assert [one for one in loaded if one.process == process] == [one for one in events if one.process == process]
    report = check(loaded)
    assert report.holds()
    assert report.counts == check(events).counts


def test_lines_are_json_that_people_can_read(tmp_path: Path):
    """Fields with their names, without what is as always."""
    path = tmp_path / "a.jsonl"
    with Recorder(path, process="p", clock=SimClock(start_ms=7)) as recorder:
        call = recorder.invoke("send", user="ann", device="phone", client_msg_id="m", digest=digest(b"hi"))
        recorder.ok(call, cid=1, seq=2, mid=3)
    assert path.read_text() == (
        '{"event":"invoke","at":7,"process":"p","call":1,"op":"send","user":"ann","device":"phone",'
        f'"client_msg_id":"m","digest":"{digest(b"hi")}"}}\n'
        '{"event":"ok","at":7,"process":"p","call":1,"cid":1,"seq":2,"mid":3}\n'
    )


def test_a_page_reaches_its_last_entry_or_the_head(tmp_path: Path):
    """Unless the caller knows better, as for a page read backwards."""
    entries = [ReadEntry(4, 1, 4, 40), ReadEntry(6, 1, 6, 60)]
    path = tmp_path / "a.jsonl"
    with Recorder(path, process="p") as recorder:
        recorder.read(user="a", device="d", channel="x", since=3, head=9, entries=entries)
        recorder.read(user="a", device="d", channel="x", since=3, head=9, entries=[])
        recorder.read(user="a", device="d", channel="x", since=3, head=0, entries=[])
        recorder.read(user="a", device="d", channel="x", since=3, head=9, entries=entries, reached=8)
    assert [event.reached for event in load([path]) if isinstance(event, Read)] == [6, 9, 3, 8]


def test_threads_share_a_recorder(tmp_path: Path):
    """Every line whole, every call with its own number, times never back."""
    path = tmp_path / "a.jsonl"

    def work() -> None:
        for number in range(200):
            call = recorder.invoke("send", user="ann", device="phone", client_msg_id=f"m{number}")
            recorder.ok(call, cid=1, seq=call, mid=call)

    with Recorder(path, process="p") as recorder:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = list(load([path]))
    calls = [event.call for event in events if isinstance(event, Invoke)]
    assert sorted(calls) == list(range(1, 801))
    assert sum(isinstance(event, Ok) for event in events) == 800


def test_what_was_recorded_survives_kill_9(tmp_path: Path):
    """The event is with the operating system before the call returns."""
    path = tmp_path / "a.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from roadstead.history.recorder import Recorder;"
        "r = Recorder(Path(sys.argv[1]), process='p');"
        "r.invoke('send', user='ann', device='phone', client_msg_id='m');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [type(event) for event in load([path])] == [Invoke]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path):
    """Its writer was killed; the others stay."""
    path = tmp_path / "a.jsonl"
    with Recorder(path, process="p") as recorder:
        recorder.fault("heal")
        recorder.fault("kill", target="im-1")
    path.write_bytes(path.read_bytes()[:-5])
    assert len(list(load([path]))) == 1


def test_long_lines_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A write may take less than it was given."""
    path = tmp_path / "a.jsonl"
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with Recorder(path, process="p") as recorder:
        recorder.fault("heal", target="x" * 100)
    assert len(list(load([path]))) == 1


def test_what_is_no_history_is_refused(tmp_path: Path):
    """With the file and the line."""
    good = '{"event":"fault","at":5,"process":"p","kind":"heal"}\n'
    for number, (text, says) in enumerate(
        [
            (good + '{"event":"fault"}\n', r"1\.jsonl:2: Object missing"),
            (good + good.replace("5", "4"), r"2\.jsonl:2: time goes back"),
            (good + '{"event":"fault","at":5,"process":"q","kind":"heal"}\n' + good, r"not reached"),
        ],
        1,
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        if number < 3:
            with pytest.raises(BadRequest, match=says):
                list(load([path]))
    twin = tmp_path / "twin.jsonl"
    twin.write_text(good)
    with pytest.raises(BadRequest, match="process p has another file"):
        list(load([tmp_path / "3.jsonl", twin]))
    with pytest.raises(StoreUnavailable, match="No such file"):
        list(load([tmp_path / "none.jsonl"]))


def test_a_file_is_never_written_over(tmp_path: Path):
    """A history belongs to one run."""
    path = tmp_path / "a.jsonl"
    Recorder(path, process="p").close()
    with pytest.raises(StoreUnavailable, match="File exists"):
        Recorder(path, process="p")


def test_a_full_disk_is_told(tmp_path: Path):
    """A history with a hole would be judged wrongly."""
    recorder = Recorder(tmp_path / "a.jsonl", process="p")
    os.dup2(os.open("/dev/full", os.O_WRONLY), recorder._file)
    with pytest.raises(StoreUnavailable, match="No space left"):
        recorder.fault("heal")
    recorder.close()


def test_deliveries_come_back_whole(tmp_path: Path):
    """With all that a publication says."""
    path = tmp_path / "a.jsonl"
    with Recorder(path, process="p", clock=SimClock(start_ms=1)) as recorder:
        recorder.deliver(
            user="bob",
            device="phone",
            channel="inbox:bob",
            offset=9,
            cid=1,
            seq=3,
            mid=2**62,
            sender="ann",
            client_msg_id="m",
            form="edit",
            ref=2,
        )
    (event,) = load([path])
    assert event == Deliver(1, "p", "bob", "phone", "inbox:bob", 9, 1, 3, 2**62, "ann", "m", "", "edit", 2)
