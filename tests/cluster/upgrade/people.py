"""The users of the old environments; MLflow refuses passwords of less than 12 characters.

alice has what everybody has; bob may edit an experiment and a prompt; carol manages a model, and an experiment of her
own; dave is denied an experiment and a model where a release can say so; erin is a second administrator.
"""

PASSWORDS = {name: f"the-password-of-{name}" for name in ("alice", "bob", "carol", "dave", "erin")}
