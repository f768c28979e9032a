"""The outage drill: a reference config service is broken in front of a sidecar, and what comes of it is measured."""
