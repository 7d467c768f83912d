"""Assets whose URI begins with ``gradient://``: a model, or an alias, of a workspace."""
