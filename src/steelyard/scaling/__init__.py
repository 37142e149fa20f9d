"""How many replicas should a function have? Pure decisions; `replicas.py` is the rule for one function on one machine."""
