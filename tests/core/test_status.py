"""The schema of /status."""

from sidecar.core.status import schema


def test_the_schema_names_its_dialect_and_every_part() -> None:
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"Status", "Reason", "Upstream", "Node"} <= found["$defs"].keys()
