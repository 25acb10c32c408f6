"""Several processes that carry the mail, and one that starts them and carries none.

`mailroute.workers.parent` is the service of the first process, `start` and
`worker` are what runs in the others; `supervisor` decides when a worker is
started, helped out for and given up.
"""
