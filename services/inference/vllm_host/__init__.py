"""vLLM in a process of its own, run by the interpreter of vLLM's environment.

`main.py` is started by path and finds nothing of Cypria but this folder; only `frames` is used on both sides.
"""
