"""What the values of the core say of themselves."""

import pytest

from sidecar.core.model import Kept, StaticAnswer, UserSettings


@pytest.mark.parametrize(
    "kept", [UserSettings({"style": "verse"}), StaticAnswer(200, (), b"{}")], ids=["settings", "static"]
)
def test_a_generation_that_states_no_lifetime_leaves_it_to_the_policy(kept: Kept | StaticAnswer) -> None:
    assert kept.stated_ttl is None
