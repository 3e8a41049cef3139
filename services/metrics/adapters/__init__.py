"""One file for each outside thing that the metrics service talks to."""
