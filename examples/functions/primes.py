"""A batch map: many inputs, as many replicas as the machine has room for, results as they come.

steelyard run examples/functions/primes.py --below 1000000
"""

import steelyard as sy

app = sy.App("primes")


@app.function(max_replicas=8, retries=2, timeout="1m")
def count(begin: int, end: int) -> int:
    return sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(max(2, begin), end))


@app.local_entrypoint
def main(below: int = 100_000, parts: int = 16):
    step = -(-below // parts)
    ranges = [(begin, min(begin + step, below)) for begin in range(0, below, step)]
    print(f"{sum(count.starmap(ranges))} primes below {below}")
