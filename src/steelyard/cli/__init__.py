"""What a person types. One module per group of commands, imported only when its command is used.

`main.py` names the commands and turns errors into one sentence and an exit code. Building real objects (store, agent, Envoy)
happens here and in `sim` alone.
"""
