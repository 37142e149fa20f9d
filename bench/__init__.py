"""How fast is it, beside its peers, in the same run? `python -m bench` (or `make bench`) measures every promised figure here.

Medians of interleaved rounds; each figure is one JSON line on stdout and one row of docs/benchmarks.md. Peers live in a
virtual environment of their own under .bench/. Load goes to this machine only, bounded in count and time.
"""
