from __future__ import annotations

from pathlib import Path

from rollstream.cli.command_line import CommandLine
from rollstream.cli.role_processes import role_processes
from rollstream.cli.settings import RollstreamSettings, UpSettings, changed_kafka
from rollstream.cli.supervisor import ProcessSpec
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.transport.settings import KafkaSettings

KAFKA = KafkaSettings(bootstrap="there:9", prefix="p.")


def processes(**sections: object) -> dict[str, ProcessSpec]:
    settings = RollstreamSettings(kafka=KAFKA).model_copy(update=sections)
    line = CommandLine(Path("/etc/rollstream.toml"), ("kafka.bootstrap=here:1",))
    return {spec.name: spec for spec in role_processes(settings, KAFKA, line, host="h")}


def test_every_role_has_its_processes_with_names_that_survive_a_restart() -> None:
    up = UpSettings(rollout_workers=2, tool_workers=1, scorers=1, trainer_command=("python", "t.py"), log_dir=Path("l"))
    found = processes(up=up, producer=ProducerSettings(source="x.jsonl", run_id="r"))
    assert list(found) == ["tool-worker-0", "rollout-worker-0", "rollout-worker-1", "scorer-0", "trainer", "produce"]
    assert 'rollout_worker.instance_id="h-rollout-worker-1"' in found["rollout-worker-1"].command
    assert found["rollout-worker-1"].log_path == Path("l/rollout-worker-1.log")
    assert [name for name, spec in found.items() if spec.may_finish] == ["trainer", "produce"]


def test_children_get_the_broker_that_was_found_even_if_another_was_typed() -> None:
    command = list(processes()["tool-worker-0"].command)
    addresses = [word for word in command if word.startswith("kafka.bootstrap")]
    assert addresses == ["kafka.bootstrap=here:1", 'kafka.bootstrap="there:9"']
    assert command[-1] == "tool-worker"
    assert command[command.index("--config") + 1] == "/etc/rollstream.toml"


def test_the_trainer_finds_the_broker_in_its_environment() -> None:
    trainer = processes(up=UpSettings(trainer_command=("t",)))["trainer"]
    assert trainer.environment == {"ROLLSTREAM_KAFKA__BOOTSTRAP": "there:9", "ROLLSTREAM_KAFKA__PREFIX": "p."}


def test_workers_on_one_machine_serve_metrics_on_ports_of_their_own() -> None:
    found = processes(rollout_worker=RolloutWorkerSettings(metrics_port=9100), up=UpSettings(rollout_workers=2))
    ports = [word for spec in found.values() for word in spec.command if "metrics_port" in word]
    assert ports == ["rollout_worker.metrics_port=9100", "rollout_worker.metrics_port=9101"]


def test_changed_settings_of_the_cluster_keep_the_rest() -> None:
    assert changed_kafka(KAFKA, prefix="q.") == KafkaSettings(bootstrap="there:9", prefix="q.")
