"""Version 1 of every message. A field may be added with a default; none is removed or retyped."""
