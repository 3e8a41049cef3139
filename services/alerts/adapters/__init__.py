"""One file for each outside thing that the alerts service talks to."""
