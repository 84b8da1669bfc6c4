"""How tables of benchmarks are written and read again."""

from __future__ import annotations

from benchmarks.timing import rows_of, table

HEADER = ["shape", "ours ms", "compile ms", "eager / ours"]
ROWS = [["N=1 D=2", "1.50", "", "1.20"], ["N=3 D=4", "2.50", "3.00", ""]]


def test_the_rows_of_a_table_come_back_for_the_command_that_wrote_it(tmp_path):
    path = tmp_path / "table.md"
    assert rows_of(path, HEADER, "`command --turns 5`") == []
    other = table(["dtype", "lowest"], [["float32", "1.00"]])
    path.write_text(f"Written by `command --turns 5`.\n\n{other}\n\n{table(HEADER, ROWS)}\n")
    assert rows_of(path, HEADER, "`command --turns 5`") == ROWS
    assert rows_of(path, HEADER, "`command --turns 7`") == []
    assert rows_of(path, HEADER[1:], "`command --turns 5`") == []
