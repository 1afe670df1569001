"""The contract between the processes of one box: messages, settings, errors, atomic writes.

Everybody may import it, the workers too. It imports the standard library and nothing else of this program.
"""
