"""The nouns: frozen structs with derived properties. No behaviour that decides, no I/O, no clock.

Times that end in `_at` are microseconds since the Unix epoch, UTC; surfaces print them as RFC 3339.
"""
