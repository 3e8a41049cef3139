"""One file for each outside thing that the router service talks to."""
