"""Pure decisions of the router service: no I/O, no clock."""
