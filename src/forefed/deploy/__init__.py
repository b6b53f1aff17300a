"""Deployment: the same strategies and client code between real machines, over Flower.

    envelope    what server and site say to each other
    remote      the Transport over a ``Post``; flower_post is the post that Flower carries
    site        what a site answers; worker: the process that does it; worker_client: who asks it
    commands    ``forefed site`` and ``forefed server``

Only modules whose names begin with ``flower_`` import ``flwr``. Neither the worker's client nor
what it imports loads torch: Flower starts a new process for every message.
"""
