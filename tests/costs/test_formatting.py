import re

from cocolm_tf.costs.formatting import format_result


def test_units_follow_from_the_keys():
    result = {
        "device": "CPU",
        "overrides": [],
        "batch_size": 4096,
        "tokens_per_second": 12345.6,
        "step_seconds": {"first_quartile": 0.5, "median": 1.5, "third_quartile": 90.0},
        "flops_per_second": 2e12,
        "flops": 3e9,
        "flops_by_part": {"main": 2e9, "head": 1e9},
        "compiled": {"bytes_accessed": 1e6, "kernels": 12},
        "megabytes_per_second": 2.5,
        "peak_memory_bytes": 3 * 2**30,
        "share_of_peak": 0.25,
        "left_out": {"x": "not installed"},
        "parts": {"one": {"a": 1}},
    }
    lines = dict(line.split(maxsplit=1) for line in format_result(result).splitlines())
    assert lines == {
        "device": "CPU",
        "batch_size": "4,096",
        "tokens_per_second": "12,346",
        "step_seconds": "1.5 s (500 ms to 1.5 min)",
        "flops_per_second": "2 TFLOP/s",
        "flops": "3 GFLOP",
        "flops_by_part": "main 2 GFLOP, head 1 GFLOP",
        "compiled": "bytes_accessed 1 MB, kernels 12",
        "megabytes_per_second": "2.5",
        "peak_memory_bytes": "3.00 GiB",
        "share_of_peak": "25.0%",
        "left_out": "x not installed",
    }


def test_tables_have_the_columns_of_all_rows():
    spread = {"first_quartile": 2.0, "median": 3.0, "third_quartile": 4.0}
    rows = {"one": {"rate": spread, "times": {"other": spread}}, "two": {"rate": None}}
    text = format_result({}, {"part": rows}).strip()
    assert [[cell.strip() for cell in re.split("  +", line)] for line in text.splitlines()] == [
        ["part", "rate", "times: other"],
        ["one", "3 (2 to 4)", "3 (2 to 4)"],
        ["two", "n/a", "n/a"],
    ]
