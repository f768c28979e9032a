"""The use cases, awaiting only through the ports they declare."""
