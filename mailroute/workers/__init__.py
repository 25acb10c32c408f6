"""Several processes that carry the mail, and one that starts them and carries none.

`mailroute.workers.parent` is the service of the first process.  It starts the
nursery, which makes the workers: `start` is what that process runs, `nursery`
what it does, and `worker` what its children are.  `supervisor` decides when a
worker is made again, helped out for and given up.
"""
