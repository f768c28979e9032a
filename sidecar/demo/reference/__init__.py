"""A small config service with every upstream API, for the demo and the tests, never for production."""
