"""How is this machine wired? One reader per format, each from text to `Topology`; `read.py` tells them apart, `merge.py` joins.

A reader takes the whole text and the name that its source should have in messages. It raises `Refused` with one clear sentence
for what is truncated, illegal or another kind of file, and never guesses. Serial numbers and MACs are not taken over.
"""
