"""The events of the log: the one table behind what is summed up and docs/events.md."""

from collections.abc import Mapping
from typing import NamedTuple


class Told(NamedTuple):
    """What an event says, when, and what to do about it."""

    levels: str
    fields: tuple[str, ...]
    when: str
    to_do: str
    kind: tuple[str, ...] | None = None
    """Lines of the same level and values of these fields are repeats of each other; None: each line is written."""


NOTHING = "Nothing."
SECONDS = "seconds"
PROMPT = ("node", "outcome", "status", SECONDS, "age_seconds", "detail")

EVENTS: Mapping[str, Told] = {
    # The process
    "started": Told("info", ("listen", "ops", "upstream", "api", "version"), "Requests are answered.", NOTHING),
    "draining": Told("info", ("background",), "It was told to stop; what is in flight ends.", NOTHING),
    "stopped": Told("info", (), "All that was in flight has ended, the store is closed.", NOTHING),
    "settings_reloaded": Told(
        "info",
        ("waiting_for_restart",),
        "Settings were read again and taken.",
        "Restart for the sections that wait for it.",
    ),
    "settings_not_reloaded": Told(
        "error",
        ("problems",),
        "The settings have mistakes, the old ones stay in force.",
        "Correct what is named; see reload-failed.",
    ),
    "upstream_files_read": Told(
        "info", ("what",), "A certificate, key or token for the service was changed and is in use.", NOTHING
    ),
    "upstream_files_not_read": Told(
        "error",
        ("what", "error"),
        "A certificate, key or token for the service was changed and cannot be used; the old one stays.",
        "Correct the file; the old one ends with its own date.",
    ),
    "traces_not_sent": Told(
        "warning",
        ("error", "lost_spans"),
        "The collector of traces does not take them; serving goes on as ever.",
        "Look at the collector, and at tracing.endpoint.",
    ),
    "traces_sent_again": Told("info", ("lost_spans",), "The collector of traces takes them again.", NOTHING),
    "listening_beyond_loopback": Told(
        "warning",
        ("listen",),
        "LearnFlow's listener can be reached by others, as the settings allow.",
        "Make sure that only LearnFlow can: nobody is asked who he is.",
    ),
    "few_open_files_allowed": Told(
        "warning",
        ("allowed", "wanted"),
        "The process may open fewer files than the limits on connections need.",
        "Raise its hard limit (ulimit -n, LimitNOFILE), or lower limits.max_connections.",
    ),
    "drain_cut": Told(
        "warning",
        ("step",),
        "A step of the drain took longer than its share of drain.timeout, and was cut.",
        "Look at what the step waits for: the service, the disk, Redis.",
    ),
    "request_refused": Told(
        "warning",
        ("reason",),
        "A client was turned away for how it asked: host, cross_site, token, slow_head or slow_reader.",
        "Where the name is one of yours, put it into allowed_hosts.",
        ("reason",),
    ),
    "request_shed": Told(
        "warning",
        ("reason",),
        "A request was turned away because there are too many.",
        "Look at what they wait for; else raise the limit that reason names.",
        ("reason",),
    ),
    "crashed": Told(
        "error, critical",
        ("what", "error", "where"),
        "A request or a background task ended by an error that nobody foresaw. Critical: so did the process.",
        "Report it; see crashed.",
        ("what", "error", "where"),
    ),
    "library_error": Told(
        "error, critical",
        ("logger", "error", "where"),
        "A library complained, or an error came where nobody could catch it.",
        "Report it; see crashed.",
        ("logger", "error", "where"),
    ),
    "log_lines_dropped": Told(
        "warning",
        ("blocked", "failed"),
        "Lines since the last such line that were dropped, because nobody read them or they could not be written.",
        "Look at what reads the log, and at its disk.",
    ),
    # Prompts
    "prompt_served": Told(
        "debug", PROMPT, "A prompt was made from fresh or revalidated data, or by the service.", NOTHING
    ),
    "stale_prompt_served": Told(
        "warning",
        PROMPT,
        "A prompt was made from stale data, because the config service gave none in time.",
        "Repair the config service before the cover ends; see stale-served.",
        ("detail",),
    ),
    "prompt_refused": Told(
        "info, warning",
        PROMPT,
        "A request ended without a prompt. Info: a 4xx, the client is told why.",
        "By `detail`; see availability.",
        ("status", "detail"),
    ),
    "prompt_not_rendered": Told(
        "warning",
        ("node", "reason"),
        "Template and content do not fit together, or the rendering went beyond its bounds.",
        "Look at the node's template and at what LearnFlow gives.",
        ("node", "reason"),
    ),
    "placeholder_rendered_empty": Told(
        "warning, debug",
        ("node", "names"),
        "A placeholder that nobody gave became nothing, as the service's options say. A warning once for each.",
        "Is the name spelt as in LearnFlow?",
    ),
    # The config service
    "upstream_called": Told("debug", ("endpoint", "result", SECONDS), "A call to the config service ended.", NOTHING),
    "upstream_retried": Told("info", ("reason",), "A call is made again.", "Many: see upstream-failing.", ("reason",)),
    "fetch_failed": Told(
        "info, warning",
        ("node", "reason", "detail", "endpoint"),
        "A fetch gave no usable document. Info: the service's own no.",
        "By `reason`; see upstream-failing.",
        ("endpoint", "reason", "detail"),
    ),
    "circuit_changed": Told(
        "warning",
        ("breaker", "to"),
        "A circuit breaker is open, half-open or closed from now on.",
        "See circuit-open.",
        ("breaker", "to"),
    ),
    "generation_changed": Told(
        "info, warning",
        ("to", "before"),
        "The generation of the config service was found. A warning: it is another than before.",
        "Was the service upgraded or rolled back?",
        ("to", "before"),
    ),
    "template_not_admitted": Told(
        "warning",
        ("node", "detail"),
        "A template is left to the service's own rendering: no cover in an outage.",
        "Change the construct that is named.",
        ("node", "detail"),
    ),
    "templates_loaded": Told("info", ("nodes",), "The template file was read.", NOTHING),
    "templates_not_loaded": Told(
        "error",
        ("error", "nodes_in_force"),
        "The template file has a mistake, the old templates stay in force.",
        "Correct it; see reload-failed.",
        ("error",),
    ),
    "request_passed_on": Told("debug", ("method", "result", SECONDS), "A request went through the proxy.", NOTHING),
    "passing_on_failed": Told(
        "warning",
        ("method", "result", SECONDS),
        "A request could not be passed on, or the service answered it with a 5xx.",
        "By `result`; see upstream-failing.",
        ("method", "result"),
    ),
    # What is kept
    "entry_evicted": Told("info", ("node",), "The config service contradicted what was kept.", NOTHING, ()),
    "settings_written": Told(
        "info",
        ("result",),
        "A user's settings were changed, so what was kept of them holds no more.",
        NOTHING,
        ("result",),
    ),
    "invalidated": Told(
        "info",
        ("source", "scope"),
        "Entries were made void by hand, or by a sidecar of the group.",
        NOTHING,
        ("source", "scope"),
    ),
    "store_degraded": Told(
        "error",
        ("error",),
        "The store is in trouble; serving goes on without it.",
        "See store-degraded.",
        ("error",),
    ),
    "store_recovered": Told("info", (), "The store works again.", NOTHING, ()),
    "record_dropped": Told(
        "warning", ("reason",), "A record of the store could not be used.", "See store-degraded.", ("reason",)
    ),
    "warm_up_ended": Told(
        "info, warning",
        ("state", "stored", "fresh", "failed", "reasons"),
        "A warm-up has ended. A warning: some pairs failed, or it was stopped.",
        "By `reasons`; warm again.",
    ),
    "warm_up_list_wrong": Told(
        "warning",
        ("line", "what", "more"),
        "A line of `warmup.file` cannot be used; after 20 of them, how many more there are.",
        "Correct the list.",
    ),
    # Comparison with the service's own prompts
    "parity_checked": Told("debug", ("node", "result"), "Our prompt was compared with the service's.", NOTHING),
    "parity_mismatch": Told(
        "warning",
        ("node", "result", "template", "part", "position", "our_length", "their_length"),
        "Our prompt differs from the service's.",
        "See parity.",
        ("node", "part"),
    ),
    "node_rolled_back": Told(
        "error", ("node", "reason"), "A node went back to the service's own rendering.", "See parity."
    ),
    "node_taken_into_service": Told(
        "warning", ("node", "reason"), "A node that was rolled back is rendered here again.", NOTHING
    ),
}
"""By name."""

EVERY_LINE = ("timestamp", "level", "event")
IDS = ("request_id", "trace_id", "span_id")
SUMS = ("repeated", "first_at", "last_at")
