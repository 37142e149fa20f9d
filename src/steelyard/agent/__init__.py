"""The agent: one per machine. Observes hardware and work, brings what runs in line with its assignment, watches the listening
sockets of sleeping functions and wakes them by itself. Needs the server for nothing that already runs or sleeps here.

    ledger.py     what must survive a kill -9 of the agent: assignment, routed revisions
    reconcile.py  assigned jobs beside observed ones -> what to do (pure)
    jobs.py       carries that out; proofs
    revision.py   one revision of a function: socket, template, replicas, wake, scaling tick
    function.py   one function: which revision is routed, roll-out, retirement of the old one
    coldstart.py  timestamps of a wake -> ledger row (pure)
    link.py       the outbound WebSocket
    loop.py       joins them
"""
