"""What a rendering process runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from sfa_ext.data.scenes.cache import Request, fill


def main(arguments: list[str]) -> None:
    """Renders every `workers`-th scene of a request, writing one byte to standard output for each.

    Arguments: the request as JSON, the folder of its arrays, this worker's number, the number of workers.
    """
    request, path = Request(**json.loads(arguments[0])), Path(arguments[1])
    number, workers = int(arguments[2]), int(arguments[3])
    try:
        for _ in fill(request, path, range(number, request.count, workers)):
            os.write(sys.stdout.fileno(), b".")
    except BrokenPipeError:
        # Nobody listens any more: the process that wanted the scenes has been killed.
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
