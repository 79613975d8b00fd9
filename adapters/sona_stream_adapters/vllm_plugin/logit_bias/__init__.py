"""A learned logit bias a tenant: its file, the folder that is watched, and the rows of a batch that get it."""
