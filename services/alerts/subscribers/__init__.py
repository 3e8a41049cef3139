"""Subscribers: the process that foreign ones run in, and those that this package brings."""
