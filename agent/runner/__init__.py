"""One job from its first split to its promotion, in a process of its own; the models live in the workers it starts.

Started by the daemon by name; imported by nothing but its own modules and the benchmarks.
"""
