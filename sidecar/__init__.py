"""A resilience sidecar in front of LearnFlow's Prompt Configuration Service."""
