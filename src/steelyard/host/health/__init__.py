"""What can be read of this machine's health? One file per source; each answers with facts of `model/health_facts.py`.

Roots are parameters, so that recorded machines replay. Nothing here judges and nothing raises for what is missing: what could not
be read is an `Unread` with the reason, and becomes UNKNOWN.
"""
