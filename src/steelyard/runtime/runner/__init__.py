"""How does a user's ASGI app get served inside the user's own interpreter, from import to retirement?

This package is loaded by path as `steelyard_runner` into environments that have nothing of ours installed, so it uses the
standard library only, runs on Python 3.10 and later, and imports its own parts relatively. It never imports anything of
`steelyard`.

    boot.py       reads the configuration and chooses the mode: template or replica
    isolate.py    imports the HTTP server without letting it meet the user's versions of the same packages
    user.py       imports the user's app, runs its `@sy.enter` hooks
    template.py   prepares everything once, then makes replicas on request
    spare.py      the replica that was forked ahead, and the packets that orders come in
    fork.py       the fork itself: the replica becomes a child of the template's parent
    apart.py      what a child does in the place of a template, because of the pages it costs
    rehearse.py   the way of a revision, gone before the first fork, so that it costs fewer copied pages
    at_fork.py    which handlers run around it
    holes.py      what keeps a child's new objects out of the pages that it shares
    threads.py    which threads make forking unsafe
    join.py       own cgroups, cores and logs; how a process of ours ends
    serve.py      one replica's life around an event loop; the warm-up
    accept.py     which waiting connections are taken, and when
    gate.py       between the HTTP server and the app: concurrency, prefix, first request, `Connection: close`
    server.py     functions that start a server of their own
    lifespan.py   the ASGI lifespan conversation
    page.py       the shared memory page through which the agent watches a replica
"""
