"""The reference config service's users and their settings, in SQLite, and the vocabulary that they choose from.

For the demo and the tests, never for production: queries are tiny and run on the event loop.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec
import yaml

CREATED_AT = "2026-01-01T00:00:00.000000"  # fixed, so that answers are the same on every run

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (user_id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS settings (
    user_id INTEGER NOT NULL REFERENCES users, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (user_id, name)
);
"""


class Value(msgspec.Struct, frozen=True):
    """One value of a placeholder."""

    value: str
    display_name: str


class Placeholder(msgspec.Struct, frozen=True):
    """A setting, and its values by key; the first is the default."""

    display_name: str
    description: str
    values: dict[str, Value]


class Profile(msgspec.Struct, frozen=True):
    """A named set of settings: placeholder to the key of its value."""

    display_name: str
    description: str
    category: str
    settings: dict[str, str]


def stable_id(*parts: str) -> str:
    """Derive the UUID of a placeholder, a value or a profile: the same on every run."""
    return str(uuid5(NAMESPACE_URL, "/".join(("prompt-sidecar", *parts))))


class Vocabulary(msgspec.Struct, frozen=True):
    """What can be chosen, and the documents in which the API shows it."""

    placeholders: dict[str, Placeholder]
    profiles: dict[str, Profile]

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a YAML file; raises `msgspec.ValidationError` where its shape is wrong."""
        return msgspec.convert(yaml.safe_load(path.read_text("utf-8")), cls)

    def defaults(self) -> dict[str, str]:
        """Return a new user's settings."""
        return {name: next(iter(each.values.values())).value for name, each in self.placeholders.items()}

    def profile_settings(self, name: str) -> dict[str, str]:
        """Return what a profile sets."""
        return {each: self.placeholders[each].values[key].value for each, key in self.profiles[name].settings.items()}

    def placeholder_named(self, placeholder_id: str) -> str | None:
        """Find a placeholder by its id."""
        return next((name for name in self.placeholders if stable_id("placeholder", name) == placeholder_id), None)

    def profile_named(self, profile_id: str) -> str | None:
        """Find a profile by its id."""
        return next((name for name in self.profiles if stable_id("profile", name) == profile_id), None)

    def value_with_id(self, value_id: str) -> tuple[str, str] | None:
        """Find a value by its id: its placeholder and its text."""
        pairs = ((name, value.value) for name, each in self.placeholders.items() for value in each.values.values())
        return next((pair for pair in pairs if stable_id("value", *pair) == value_id), None)

    def value_document(self, placeholder: str, value: Value) -> dict[str, Any]:
        """Show a value."""
        return {
            "id": stable_id("value", placeholder, value.value),
            "value": value.value,
            "display_name": value.display_name,
            "description": None,
            "created_at": CREATED_AT,
        }

    def placeholder_document(self, name: str) -> dict[str, Any]:
        """Show a placeholder and its values."""
        each = self.placeholders[name]
        return {
            "id": stable_id("placeholder", name),
            "name": name,
            "display_name": each.display_name,
            "description": each.description,
            "created_at": CREATED_AT,
            "updated_at": CREATED_AT,
            "values": [self.value_document(name, value) for value in each.values.values()],
        }

    def profile_document(self, name: str) -> dict[str, Any]:
        """Show a profile and what it sets."""
        profile = self.profiles[name]
        settings = [(each, self.placeholders[each].values[key]) for each, key in profile.settings.items()]
        return {
            "id": stable_id("profile", name),
            "name": name,
            "display_name": profile.display_name,
            "description": profile.description,
            "category": profile.category,
            "created_at": CREATED_AT,
            "updated_at": CREATED_AT,
            "placeholder_settings": [
                {
                    "placeholder_id": stable_id("placeholder", each),
                    "placeholder_value_id": stable_id("value", each, value.value),
                    "placeholder_name": None,
                    "placeholder_value": self.value_document(each, value),
                }
                for each, value in settings
            ],
        }

    def settings_document(self, settings: Mapping[str, str], profile: str | None = None) -> dict[str, Any]:
        """Show a user's settings; one that the vocabulary does not know is shown under its own name."""
        shown = {}
        for name, text in settings.items():
            known = self.placeholders.get(name)
            titles = {value.value: value.display_name for value in known.values.values()} if known else {}
            shown[name] = {
                "placeholder_id": stable_id("placeholder", name),
                "placeholder_name": name,
                "placeholder_display_name": known.display_name if known else name,
                "value_id": stable_id("value", name, text),
                "value": text,
                "display_name": titles.get(text, text),
            }
        return {
            "placeholders": shown,
            "active_profile_id": stable_id("profile", profile) if profile else None,
            "active_profile_name": self.profiles[profile].display_name if profile else None,
        }


class Database:
    """Users and their settings; a user's first read creates it with the defaults.

    A user id beyond int64 raises `OverflowError`, as the database of the real service refuses it.
    """

    def __init__(self, path: str, defaults: Mapping[str, str]) -> None:
        self._connection = sqlite3.connect(
            path, isolation_level=None
        )  # autocommit, and BEGIN where two belong together
        self._connection.executescript(_SCHEMA)
        self._defaults = dict(defaults)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def settings(self, user_id: int) -> dict[str, str]:
        """Return a user's settings, in the order in which they were first set."""
        if not self._connection.execute("SELECT 1 FROM users WHERE user_id = ?", (user_id,)).fetchone():
            self.replace(user_id, self._defaults)
        found = self._connection.execute(
            "SELECT name, value FROM settings WHERE user_id = ? ORDER BY rowid", (user_id,)
        )
        return dict(found.fetchall())

    def replace(self, user_id: int, settings: Mapping[str, str]) -> None:
        """Make these, and no others, the user's settings."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("INSERT OR IGNORE INTO users VALUES (?)", (user_id,))
            self._connection.execute("DELETE FROM settings WHERE user_id = ?", (user_id,))
            rows = [(user_id, name, value) for name, value in settings.items()]
            self._connection.executemany("INSERT INTO settings VALUES (?, ?, ?)", rows)

    def change(self, user_id: int, settings: Mapping[str, str]) -> None:
        """Change some of the user's settings."""
        self.replace(user_id, {**self.settings(user_id), **settings})

    def reset(self, user_id: int) -> None:
        """Give the user the defaults again."""
        self.replace(user_id, self._defaults)
