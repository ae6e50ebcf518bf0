"""An archiver that kills itself before a given line of its own, again and again; the last one is left to work.

    python killed_archiver.py JOB.json

It forks after the imports, so that a start costs none. Prints how often it was killed; the last one runs until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from rollstream.trainers.archive.service import run_archiver
from rollstream.trainers.archive.settings import ArchiveSettings
from rollstream.transport.settings import KafkaSettings

LIBRARY = str(Path("trainers", "archive"))
LIFE_S = 20
"""Of one that comes to no such line."""


def kill_before_line(number: int) -> None:
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if LIBRARY not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)


async def archive(settings: ArchiveSettings, kafka: KafkaSettings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_archiver(settings, kafka, stop)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    settings = ArchiveSettings.model_validate(job["archive"])
    kafka = KafkaSettings.model_validate(job["kafka"])
    killed = 0
    for number in job["kills"]:
        child = os.fork()
        if child == 0:
            signal.alarm(LIFE_S)
            kill_before_line(number)
            asyncio.run(archive(settings, kafka))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print(json.dumps({"killed": killed}), flush=True)
    asyncio.run(archive(settings, kafka))


if __name__ == "__main__":
    main()
