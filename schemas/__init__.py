"""The contracts between services: messages by version, subjects, streams, the sketch.

Imports no service. Everything that crosses the bus or is stored is declared here.
"""
