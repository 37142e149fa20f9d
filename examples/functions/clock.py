"""A function by the clock: once deployed it needs nobody to call it.

steelyard deploy examples/functions/clock.py
steelyard schedules
"""

import steelyard as sy

app = sy.App("clock")


@app.function(schedule=sy.Every(minutes=5))
def sweep():
    print("swept")


@app.function(schedule=sy.Cron("0 7 * * mon-fri", timezone="Europe/Berlin"))
def report():
    print("a report for the working day")
