"""How does a user's ASGI app get served inside the user's own interpreter, from import to retirement?

This package is loaded by path as `steelyard_runner` into environments that have nothing of ours installed, so it uses the
standard library only, runs on Python 3.10 and later, and imports its own parts relatively. It never imports anything of
`steelyard`.

    boot.py       reads the configuration and chooses the mode: template or replica
    isolate.py    imports the HTTP server without letting it meet the user's versions of the same packages
    user.py       imports the user's app, runs its `@sy.enter` hooks
    template.py   prepares everything once, then forks replicas on request
    fork.py       the fork itself: the replica becomes a child of the template's parent
    threads.py    which threads make forking unsafe
    serve.py      accept limit, requests, retirement
    lifespan.py   the ASGI lifespan conversation
    page.py       the shared memory page through which the agent watches a replica
"""
