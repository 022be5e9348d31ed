import math

import pandas as pd
import pytest

from emulab.errors import EmulabError
from emulab.load import records
from emulab.load.client import Exchange
from emulab.load.recorder import Recorder


def write(folder, worker=0, *, error=None, end_s=10.75):
    recorder = Recorder(folder, worker)
    page = Exchange("GET", "/index.php", "page", 200, 10.5001, 10.6, 5000, None, 0, False)
    image = Exchange("GET", "/fileService.php?file=e1t.jpg", "image", 0, 10.7, 10.75, 0, error, 0, True)
    recorder.request(7, 3, "HomePage", page, n=0, intended_s=10.4)
    recorder.request(7, 3, "HomePage", image, n=1, intended_s=10.7)
    recorder.operation(7, 3, "HomePage", intended_s=10.4, start_s=10.5, end_s=end_s, error=error, size=5000, requests=2, cycle_s=4.25)
    return recorder


def test_tables_have_the_types_of_the_contract(tmp_path):
    write(tmp_path).close()
    operations, requests = records.read_operations(tmp_path), records.read_requests(tmp_path)
    assert {name: str(kind) for name, kind in operations.dtypes.items()} == {
        "user": "int32", "seq": "int32", "operation": "str", "intended_s": "float64", "start_s": "float64", "end_s": "float64",
        "outcome": "str", "error": "str", "bytes": "int64", "requests": "int32", "cycle_s": "float64", "worker": "int16",
    }  # fmt: skip
    assert {name: str(kind) for name, kind in requests.dtypes.items()} == {
        "user": "int32", "op_seq": "int32", "operation": "str", "n": "int16", "method": "str", "path": "str", "kind": "str",
        "status": "int16", "intended_s": "float64", "start_s": "float64", "end_s": "float64", "bytes": "int64", "error": "str",
        "connection": "int32", "reused": "bool",
    }  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    write(tmp_path).close()
    operation = records.read_operations(tmp_path).iloc[0]
    assert operation.drop("error").to_dict() == {
        "user": 7, "seq": 3, "operation": "HomePage", "intended_s": 10.4, "start_s": 10.5, "end_s": 10.75, "outcome": "ok",
        "bytes": 5000, "requests": 2, "cycle_s": 4.25, "worker": 0,
    }  # fmt: skip
    assert pd.isna(operation.error)
    requests = records.read_requests(tmp_path)
    assert requests.path.tolist() == ["/index.php", "/fileService.php?file=e1t.jpg"]
    assert requests.reused.tolist() == [False, True]
    assert requests.n.tolist() == [0, 1]


def test_errors_and_unfinished_operations(tmp_path):
    write(tmp_path, 0, error='closed, without\nan "answer"').close()
    write(tmp_path, 1, end_s=None).close()
    table = records.read_operations(tmp_path).set_index("worker")
    assert table.outcome.to_dict() == {0: "error", 1: "unfinished"}
    assert table.error[0] == "closed; without an 'answer'"
    assert math.isnan(table.end_s[1])


def test_workers_are_put_together_in_order_of_start(tmp_path):
    for worker in (1, 0):
        recorder = Recorder(tmp_path, worker)
        for seq in range(3):
            recorder.operation(
                worker, seq, "Login", intended_s=seq, start_s=seq + worker / 10, end_s=seq + 1, error=None, size=1, requests=1, cycle_s=1
            )
        recorder.close()
    assert records.read_operations(tmp_path).start_s.tolist() == [0, 0.1, 1, 1.1, 2, 2.1]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_cut_last_line_is_dropped(tmp_path, cut):
    recorder = write(tmp_path)
    write_more(recorder, 20)
    recorder.close()
    path = tmp_path / "requests-0.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(records.read_requests(tmp_path)) == 21


def write_more(recorder, count):
    for n in range(count):
        exchange = Exchange("GET", f"/js/a-file-with-a-long-name-{n:03d}.js", "static", 304, 20.0 + n, 20.5 + n, 200, None, 0, True)
        recorder.request(7, 4, "HomePage", exchange, n=n, intended_s=20.0 + n)


def test_a_killed_worker_loses_only_what_was_not_flushed(tmp_path):
    recorder = write(tmp_path)
    recorder.flush()
    write_more(recorder, 5)
    assert len(records.read_requests(tmp_path)) == 2
    recorder.close()
    assert len(records.read_requests(tmp_path)) == 7


def test_files_with_a_header_only_or_nothing_at_all(tmp_path):
    Recorder(tmp_path, 0).close()
    (tmp_path / "operations-1.csv").write_bytes(b"")
    (tmp_path / "operations-2.csv").write_bytes(b"user,seq,oper")
    assert len(records.read_operations(tmp_path)) == 0
    assert records.read_operations(tmp_path).user.dtype == "int32"


def test_a_folder_without_records_is_told(tmp_path):
    with pytest.raises(EmulabError, match="holds no operations"):
        records.read_operations(tmp_path)
    assert len(records.read_probes(tmp_path)) == 0


def test_a_file_that_holds_something_else_is_told(tmp_path):
    (tmp_path / "operations-0.csv").write_text("user,seq\nnot,numbers\n")
    with pytest.raises(EmulabError, match="not a record file"):
        records.read_operations(tmp_path)


def test_parquet_keeps_values_and_types(tmp_path):
    write(tmp_path, error="timeout").close()
    table = records.read_requests(tmp_path)
    records.write_parquet(table, tmp_path / "requests.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "requests.parquet"), table)
