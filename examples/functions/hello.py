"""The smallest app: a function that runs elsewhere, and a program that calls it.

steelyard run examples/functions/hello.py --name Ada
steelyard run examples/functions/hello.py:greet Ada
"""

import steelyard as sy

app = sy.App("hello")


@app.function
def greet(name: str = "world") -> str:
    return f"hello, {name}"


@app.local_entrypoint
def main(name: str = "world"):
    print(greet.remote(name))
