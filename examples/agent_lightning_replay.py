"""Old trajectories into an agent-lightning server, once more and beside any training.

    python examples/agent_lightning_replay.py http://localhost:8080 --bootstrap 127.0.0.1:9092 --run-id gsm8k

What is there already stays as it is, so it may be run again. `rollstream agent-lightning push` does the same with what
arrives, at the pace of the server's readers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from datetime import datetime

from rollstream.trainers import AsyncTrajectoryReplay
from rollstream.trainers.adapters.agent_lightning.pusher import AgentLightningServer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Old trajectories into an agent-lightning server.")
    parser.add_argument("url", help="of agent-lightning's server")
    parser.add_argument("--bootstrap", default=os.environ.get("ROLLSTREAM_KAFKA__BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("ROLLSTREAM_KAFKA__PREFIX", "rollstream."))
    parser.add_argument("--run-id", help="of this run only")
    parser.add_argument("--since", type=datetime.fromisoformat, help="ISO time to begin at; default: the beginning")
    return parser.parse_args()


async def main() -> None:
    args = arguments()
    pushed = 0
    async with (
        AgentLightningServer(args.url, key=os.environ.get("AGENT_LIGHTNING_KEY")) as server,
        AsyncTrajectoryReplay(
            args.bootstrap, prefix=args.prefix, run_id=args.run_id, start=args.since or "beginning", min_members=1
        ) as replay,
    ):
        async for batch in replay:
            for trajectory in batch.trajectories():
                await server.push(trajectory)
                pushed += 1
            print(f"{pushed} trajectories pushed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
