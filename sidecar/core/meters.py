"""Put meters into a template's tree: on each value that an operation walks, prints or loops over.

A meter is a filter whose name cannot be written in a template; it takes the cost from the rendering's budget before the
operation starts. Constants carry none: Jinja folds them when it compiles, as it would without us.
"""
