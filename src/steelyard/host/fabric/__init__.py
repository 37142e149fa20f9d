"""How are the machines wired to each other? One reader per format, from text to `Fabric`; `read.py` tells them apart.

A reader takes the whole text and the name that its source should have in messages. It raises `Refused` with one clear sentence
for what is truncated, illegal or another kind of file, and never guesses. Serial numbers, GUIDs and MACs are not taken over.
"""
