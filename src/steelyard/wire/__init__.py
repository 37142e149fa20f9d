"""Typed messages between programs, and their versions. No decisions, no state."""

#: goes up when a frame changes in a way an older peer can't read; both sides accept their own and the one before
WIRE_VERSION = 1
