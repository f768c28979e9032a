"""What the service would have answered: each prompt is compared with it, and dated by the settings it was made with."""

import time
from dataclasses import dataclass, field

from sidecar.demo.drill.plan import Plan, PlanError
from sidecar.demo.reference.state import RefusalError, State, names_in

CONTENT = "Why do tides rise twice a day? <b>Give</b> a formula & an example."
MARK = "request-00000000-of-the-drill"


def mark(number: int) -> str:
    """Return what only this request's content has."""
    return f"request-{number:08d}-of-the-drill"


@dataclass
class Oracle:
    """A reference service of our own, on the database of the one that is asked.

    Each revision changes all settings of all users, as an outage begins: an answer of an older one is dated by it.
    """

    plan: Plan
    database: str
    revision: int = -1
    _replaced_at: dict[int, float] = field(default_factory=dict)
    _made_with: dict[tuple[int, str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = State(self.plan.reference(self.database))
        self._defaults = self._state.vocabulary.defaults()
        self.revise()

    def context(self, node: str, number: int) -> dict[str, str]:
        """Return the content of a request: all that its template asks for and users do not set."""
        wanted = names_in(self._state.templates[node].text) - self._defaults.keys()
        return {name: f"{CONTENT} ({name}, {mark(number)})" for name in sorted(wanted)}

    def revise(self) -> None:
        """Change all settings; raises `PlanError` where a prompt cannot be made."""
        for user in dict.fromkeys(user for user, _ in self.plan.pairs):
            said = f"(user {user}, revision {self.revision + 1})"
            self._state.database.replace(user, {name: f"{text} {said}" for name, text in self._defaults.items()})
        self._replaced_at[self.revision] = time.monotonic()
        self.revision += 1
        for user, node in self.plan.pairs:
            try:
                prompt = self._state.prompt(user, node, self.context(node, 0))["prompt"]
            except RefusalError as refusal:
                raise PlanError(f"--nodes: {refusal.detail}.") from refusal
            except Exception as error:  # a template raises what it likes
                raise PlanError(f"--nodes: the template of {node} cannot be rendered with texts: {error}.") from error
            self._made_with[user, node, prompt] = self.revision  # the newest, where a template shows no setting

    def revision_of(self, user: int, node: str, number: int, prompt: str) -> int | None:
        """Return the settings' revision that a prompt was made with; None: the service never said this."""
        return self._made_with.get((user, node, prompt.replace(mark(number), MARK)))

    def outdated_since(self, revision: int) -> float | None:
        """Return when (monotonic) the service gave this revision up; None: it has not."""
        return self._replaced_at.get(revision)

    def close(self) -> None:
        """Close the database."""
        self._state.database.close()
