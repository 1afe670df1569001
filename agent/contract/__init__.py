"""What the processes of one box agree on: messages, settings, errors, and how files are written.

Everybody may import it, the workers too. It imports the standard library and nothing else of this program.
"""
