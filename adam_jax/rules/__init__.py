"""The members of the family: one file each, each written for one array."""
