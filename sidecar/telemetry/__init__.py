"""Listeners that turn what happened into metrics and logs."""
