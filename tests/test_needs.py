"""A test that lacks what it needs is skipped by a person, and fails in continuous integration."""

import pytest

from tests import needs


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)], ids=["fails", "is skipped"]
)
def test_what_is_missing_is_named_with_where_to_get_it(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="there is no no-such-program here; some-package has it"):
        needs.program("no-such-program", from_="some-package")
    with pytest.raises(outcome, match="there is no module no_such_module here; some-package has it"):
        needs.module("no_such_module", from_="some-package")


def test_what_is_there_is_returned() -> None:
    assert needs.program("sh", from_="dash").endswith("/sh")
    assert needs.module("json", from_="Python").loads("1") == 1
