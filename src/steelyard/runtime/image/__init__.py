"""How do images lie on a machine? One folder per owner, which that owner's builds write and nobody else:

    <image>/            a step that is done, named by itself and all below it; appears by rename, whole or not at all
      image.json        what it is (`Marker`); a folder without it does not count
      venv/             the Python environment: hard links of files in cache/, read-only
      files/            what `copy` brought and `run` made; modules are imported from it too
    .making-<image>/    a build under way, or what a killed one left: it is held by a lock while the builder lives
    .lock-<image>
    cache/ python/      uv's

`build.py` is the builder's program, run as an ordinary job of the owner; `layer.py` is one such folder, for the builder that
makes it and the agent that looks at it and removes it.
"""
