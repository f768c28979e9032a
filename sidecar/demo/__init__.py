"""The reference config service and the demo's scenario."""
