"""A producer that kills itself at a given line, again and again, each time started anew, until its run is finished.

    python killed_producer.py SETTINGS.json

It forks before it connects to anything, so that a restart costs no imports: the next process looks at the topic a few
milliseconds after the death of the one before.
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

from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.transport.settings import KafkaSettings

PACKAGES = (str(Path("rollstream", "producers")), str(Path("transport", "publisher.py")))


def kill_at_line(number: int) -> None:
    """SIGKILL before the given line of the producer or the publisher."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not any(package in frame.f_code.co_filename for package in PACKAGES):
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)


def start(settings: ProducerSettings, kafka: KafkaSettings, number: int | None) -> bool:
    """One process; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            if number is not None:
                kill_at_line(number)
            asyncio.run(produce(settings, kafka, asyncio.Event()))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("the producer failed")
    return not os.WIFSIGNALED(status)


def main(job: dict[str, Any]) -> int:
    settings = ProducerSettings.model_validate(job["producer"])
    kafka = KafkaSettings.model_validate(job["kafka"])
    for killed, number in enumerate([*job["kills"], None]):
        if start(settings, kafka, number):
            return killed
    raise SystemExit("no end")


if __name__ == "__main__":
    print(main(json.loads(Path(sys.argv[1]).read_text())))
