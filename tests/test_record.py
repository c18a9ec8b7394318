"""The record of a run, as it is after a full disk or a lost machine."""

import json

from diffir_sr.data.records import append_record, forget_after, read_records
from diffir_sr.models.saving import last_measured


def test_half_a_line_at_the_end_does_not_stop_a_run_from_going_on(tmp_path):
    path = tmp_path / "validation.jsonl"
    for iteration in (10, 20, 30):
        append_record(path, {"iter": iteration, "dataset": "Set5", "psnr": float(iteration)})
    with path.open("a") as file:
        file.write('{"iter": 40, "data')
    assert [row["iter"] for row in read_records(path)] == [10, 20, 30]
    assert last_measured(path) == {"Set5": {"iter": 30, "psnr": 30.0}}
    forget_after(path, 20)
    assert [json.loads(line)["iter"] for line in path.read_text().splitlines()] == [10, 20]
    append_record(path, {"iter": 30, "dataset": "Set5", "psnr": 1.0})
    assert len(read_records(path)) == 3


def test_a_run_without_a_record_has_measured_nothing(tmp_path):
    assert last_measured(tmp_path / "validation.jsonl") == {}
