"""States of other frameworks' optimizers, moved in and out."""
