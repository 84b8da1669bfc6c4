"""The task file and the bank of tasks that share one backbone."""

from sfa_ext.deltas.bank import TaskBank, task_name
from sfa_ext.deltas.capture import check_backbone, collect, restore
from sfa_ext.deltas.file import DTYPES, TASK_FILE, Selected, Task, from_bytes, read, to_bytes, write

__all__ = [
    "DTYPES",
    "TASK_FILE",
    "Selected",
    "Task",
    "TaskBank",
    "check_backbone",
    "collect",
    "from_bytes",
    "read",
    "restore",
    "task_name",
    "to_bytes",
    "write",
]
