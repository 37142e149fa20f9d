"""What does the outside world speak to? The REST API for people and programs, one WebSocket for the agent.

`app.make_app` joins the parts. Only this folder knows HTTP; statuses are chosen in `problems.py` alone. Handlers change desired
state in one transaction and poke loops; they never touch a workload.
"""
