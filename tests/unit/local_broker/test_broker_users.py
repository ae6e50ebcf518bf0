from __future__ import annotations

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker.configuration import Listeners, server_properties
from rollstream.transport.local_broker.users import BrokerUsers

USERS = BrokerUsers("admin", {"admin": "first-secret", "tools": "second-secret"})
LISTENERS = Listeners("127.0.0.1", 20_001, 20_002)


def test_nothing_of_the_broker_can_be_reached_without_a_login() -> None:
    properties = server_properties(LISTENERS, "records") | USERS.properties(LISTENERS)

    protocols = dict(pair.split(":") for pair in properties["listener.security.protocol.map"].split(","))
    offered = {listener.split("://")[0] for listener in properties["listeners"].split(",")}
    assert {protocols[name] for name in offered} == {"SASL_PLAINTEXT"}
    assert properties["super.users"] == "User:admin"
    assert properties["allow.everyone.if.no.acl.found"] == "false"


def test_passwords_show_in_no_representation_and_no_other_user_is_known_to_the_controller() -> None:
    assert "secret" not in repr(USERS)
    assert "second-secret" not in "".join(USERS.properties(LISTENERS).values())


def test_each_user_is_given_to_the_formatter() -> None:
    assert USERS.formatter_arguments() == [
        "--add-scram",
        "SCRAM-SHA-512=[name=admin,password=first-secret]",
        "--add-scram",
        "SCRAM-SHA-512=[name=tools,password=second-secret]",
    ]


@pytest.mark.parametrize("name", ['quo"te', "a b", "", "x=y", "new\nline"])
def test_names_and_passwords_that_would_need_quoting_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="must be letters"):
        BrokerUsers("admin", {"admin": "secret", name: "secret"})
    with pytest.raises(SettingsError, match="must be letters"):
        BrokerUsers("admin", {"admin": f"secret{name} "})


def test_the_super_user_must_be_able_to_log_in() -> None:
    with pytest.raises(SettingsError, match="'admin' has no password"):
        BrokerUsers("admin", {"tools": "secret"})
