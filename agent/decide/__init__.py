"""The decision: what each row needs, when a phase is over, and what was decided.

Classifier, monitor and schedules are pure functions of recorded numbers; only the decision store knows the queue's
database. It must not import data, versions or what runs a job.
"""
