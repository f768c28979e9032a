"""The `placeholders` generation: the settings of a user by one call for all nodes (contract §2)."""

import msgspec

from sidecar.core.errors import UpstreamFailure
from sidecar.core.model import SettingsKey, UserSettings
from sidecar.upstream.answers import Exists, bad, decoded, endpoint_gone, may_be_no_endpoint
from sidecar.upstream.client import UpstreamClient

PATH = "/api/v1/users/{}/placeholders"


class _Placeholder(msgspec.Struct):
    value: str
    placeholder_name: str | None = None


class _Payload(msgspec.Struct):
    """What is read of the answer; whose it is need not be said, but must be right where it is."""

    placeholders: dict[str, _Placeholder]
    user_id: int | str | None = None


_decoder = msgspec.json.Decoder(_Payload)


class PlaceholdersSource:
    """One call of `GET /api/v1/users/{user_id}/placeholders`, unguarded."""

    endpoint = "user-placeholders"

    def __init__(self, client: UpstreamClient, *, exists: Exists | None = None) -> None:
        """`exists`: look again which generation answers, where an answer may mean that it is another."""
        self._client = client
        self._exists = exists

    async def fetch(
        self, key: SettingsKey, known: UserSettings | None, authorization: str | None = None
    ) -> UserSettings:
        """Bring the user's settings; raises `UpstreamFailure`."""
        try:
            response = await self._client.get(PATH.format(key.user_id), authorization=authorization)
        except UpstreamFailure as failure:
            if self._exists is not None and may_be_no_endpoint(failure):
                await self._exists()
                raise endpoint_gone(failure, PATH.format("{user_id}")) from failure
            raise
        payload = decoded(_decoder, response.body)
        if payload.user_id is not None and str(payload.user_id) != str(key.user_id):
            raise bad("the settings of another user")
        for name, placeholder in payload.placeholders.items():
            if placeholder.placeholder_name not in {None, name}:
                raise bad("a setting under the name of another")
        values = {name: placeholder.value for name, placeholder in payload.placeholders.items()}
        if known is not None and values == known.values:
            return known  # the same: one object, and what was composed of it stays good
        return UserSettings(values)
