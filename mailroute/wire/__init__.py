"""Bytes only: bounded readers and writers of what goes over the wire.

No I/O, no Twisted, nothing of mailroute's other rooms.
"""
