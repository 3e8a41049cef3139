"""Simulations that show what the statistics of a verdict really do: ``python -m benchmarks.statistics``.

``batch`` runs many replications of the e-processes at once (a unit test holds it equal to the product's
code); ``rollback``, ``sticky`` and ``promotion`` are the scenarios; ``tables`` prints the tables.
"""
