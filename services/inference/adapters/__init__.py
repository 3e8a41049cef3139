"""One file for each outside thing that the inference service talks to."""
