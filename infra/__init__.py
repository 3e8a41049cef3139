"""Data that the running system and its operators need: bus users, migrations, models."""
