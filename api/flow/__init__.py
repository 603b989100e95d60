"""One streaming request, step by step; the file names sort in the order of time.

    admit   take a slot of the tenant
    book    the row that says "in flight"; written beside the call
    call    open an upstream; where it fails, the next one
    relay   events from the upstream to the client
    settle  booking to usage event, then the slot
    tend    once a second, for all live streams: leases, heartbeats, checkpoints, stalls
    walk    the Response that takes a request through all of this, and owns the ending

Nothing in here is a generator, and nothing is accounted for in a `finally` that a cancellation can reach.
"""
