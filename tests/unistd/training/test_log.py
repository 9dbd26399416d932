"""log.jsonl and the event files: they follow the checkpoint, whatever happened to them since."""

import json

import pytest
from support.killing import events

from unistd.training.log import RunLog, read_log, records_until
from unistd.training.run import Run


def write(log, steps):
    for step in steps:
        log.step(step, {"kth": 1.0 / step, "enso": step}, {"lr": 0.5, "seconds": float(step)})


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def whole(tmp_path):
    """Records of a log of eight steps, three a record, and its event files."""
    folder = tmp_path / "whole"
    folder.mkdir()
    log = RunLog(Run(folder), 3)
    log.baselines({"kth": 1.0, "enso": 2.0})
    write(log, range(1, 5))
    log.validation(4, {"kth": {"model": {"mse": 0.25}, "repeat_last": {"mse": 1.0}}})
    write(log, range(5, 9))
    log.flush()
    log.close()
    records = read_log(folder / "log.jsonl")
    assert [record["step"] for record in records] == [0, 3, 4, 6, 8]
    assert records[1]["losses"]["enso"] == 2
    assert [step for step, _ in events(folder / "tensorboard")["loss/kth"]] == [3, 6, 8]
    return records, events(folder / "tensorboard")


def test_skipped_steps_are_counted_and_not_averaged(run):
    log = RunLog(run, 3)
    log.step(1, {"kth": 2.0}, {})
    log.step(2, None, {})
    state = json.loads(json.dumps(log.state_dict()))
    log.close()
    assert state == {"records": 0, "losses": {"kth": [2.0]}, "skipped": 1}
    log = RunLog(run, 3, state)
    log.step(3, {"kth": 4.0}, {"lr": 0.5})
    for step in (4, 5, 6):
        log.step(step, None, {"lr": 0.5})
    log.close()
    assert read_log(run.log) == [
        {"step": 3, "losses": {"kth": 3.0}, "lr": 0.5, "skipped": 1},
        {"step": 6, "losses": {}, "lr": 0.5, "skipped": 3},
    ]
    assert [value for _, value in events(run.tensorboard)["train/skipped"]] == [1, 3]


def first_try(run, after):
    """A log up to step 4 and its state there; then `after` steps more."""
    log = RunLog(run, 3)
    log.baselines({"kth": 1.0, "enso": 2.0})
    write(log, range(1, 5))
    log.validation(4, {"kth": {"model": {"mse": 0.25}, "repeat_last": {"mse": 1.0}}})
    state = json.loads(json.dumps(log.state_dict()))
    write(log, range(5, 5 + after))
    log.close()
    return state


def second_try(run, state):
    log = RunLog(run, 3, state)
    write(log, range(5, 9))
    log.flush()
    log.close()
    return log


@pytest.mark.parametrize("after", [0, 1, 2, 4])
@pytest.mark.parametrize("damage", ["none", "torn", "zeros", "no events", "torn events"])
def test_a_second_try_ends_as_if_there_had_been_one(run, whole, after, damage):
    state = first_try(run, after)
    text = run.log.read_text()
    if damage == "torn":
        run.log.write_text(text + '{"step": 6, "los')
    elif damage == "zeros":
        run.log.write_bytes(text.encode() + bytes(4096))
    elif "events" in damage:
        for file in run.tensorboard.iterdir():
            file.write_bytes(file.read_bytes()[:100]) if "torn" in damage else file.unlink()
    assert second_try(run, state).lost == 0
    assert (read_log(run.log), events(run.tensorboard)) == whole
    assert len(list(run.tensorboard.iterdir())) == 1


def test_a_try_that_died_before_its_first_checkpoint_counts_nothing(run, whole):
    first_try(run, 4)
    log = RunLog(run, 3)
    assert log.records == 0
    log.close()
    assert read_log(run.log) == []
    assert events(run.tensorboard) == {}


def test_records_that_the_file_has_lost_are_counted(run):
    state = first_try(run, 0)
    run.log.write_text(run.log.read_text().splitlines(keepends=True)[0])
    log = second_try(run, state)
    assert log.lost == 2
    assert [record["step"] for record in read_log(run.log)] == [0, 6, 8]


def test_a_checkpoint_of_an_earlier_release_tells_by_its_step(run):
    first_try(run, 4)
    assert records_until(run.log, 4) == {"records": 3, "losses": {}}


LINES = {
    "cut short": b'{"step": 2, "los',
    "zeros": bytes(100),
    "a list": b"[1]",
    "no step": b'{"losses": {}}',
    "a step that is none": b'{"step": true}',
    "losses that are none": b'{"step": 2, "losses": 5}',
    "text in place of a number": b'{"step": 2, "losses": {"kth": "low"}}',
    "not UTF-8": b'{"step": 2, "x\xff": 1}',
    "too deep": b'{"step": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_reading_ends_at_the_first_line_that_is_no_record(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    assert read_log(path) == [{"step": 1}]
    assert read_log(tmp_path / "none.jsonl") == []
