"""The Triton kernels compute what the other backends compute, shown without a GPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Tests of every backend that the interpreter runs in seconds, beside those that are its own.
SHARED = {
    "test_accumulate_scores.py": "operator and (agrees or many)",
    "test_fused_adapter.py": "strided or infinity or only_what or leading or no_rows or frozen or inference_mode",
    "test_fused_adapter_norm.py": "strided or infinity or only_what or single_column or constant_row or no_rows",
    "test_select_topk.py": "refuses_nan or opcheck",
    "test_sparse_adamw.py": "(fresh and operator or of_32) and (32-dense or 16-gathered or 64-dense) or opcheck",
    "test_swap_values.py": "operator and exchanges and 1000",
}
OWN = {"interpreted_triton.py": ""}


@pytest.mark.parametrize("file", [*OWN, *SHARED])
def test_the_interpreter_passes(file):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    chosen = " and ".join(f"({part})" for part in ("cpu-triton", {**OWN, **SHARED}[file]) if part)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
