"""Cypria's services: independent processes that meet only on the bus."""
