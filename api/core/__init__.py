"""The pure part: no await, no clock, no environment, no framework.

Everything here is a function of its arguments, so that Hypothesis can drive it.
"""
